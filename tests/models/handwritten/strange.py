"""Networks whose code is not what a part returns to its caller, or which return something else beside it."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.parts import conv_norm_relu, double_conv
from tests.models.handwritten.unets import SegNet

WIDTHS = (8, 16, 32)


class Classifier(nn.Module):
    """Three stages that halve, and classes: an encoder that was made for something else."""

    def __init__(self) -> None:
        super().__init__()
        pairs = itertools.pairwise((3, *WIDTHS))
        self.stages = nn.ModuleList(
            nn.Sequential(conv_norm_relu(a, b, stride=2), conv_norm_relu(b, b)) for a, b in pairs
        )
        self.classes = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.classes(x.mean((2, 3)))


class Up(nn.Module):
    """Goes up over two skip connections to the input's size."""

    def __init__(self, code: int = WIDTHS[-1]) -> None:
        super().__init__()
        self.up2, self.up1 = nn.ConvTranspose2d(code, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.up0, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        return self.head(self.up0(F.relu(self.up1(F.relu(self.up2(z) + b)) + a)))


# Hooks ----------------------------------------------------------------------------------------------------------------
class HooksWhenBuilt(nn.Module):
    """Hooks the last activation of each stage, and drops what the encoder returns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Classifier(), Up()
        self.seen: list[Tensor] = []
        for stage in self.encoder.stages:
            stage[-1][-1].register_forward_hook(self.see)

    def see(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(output)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.clear()
        self.encoder(x)
        return self.decoder(*self.seen)


class HooksInForward(nn.Module):
    """Hooks everything for as long as a pass takes, and takes what has a new size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(*Classifier().stages), Up()

    def forward(self, x: Tensor) -> Tensor:
        seen: dict[int, Tensor] = {}
        handles = [
            module.register_forward_hook(lambda _, args, output: seen.__setitem__(output.shape[3], output))
            for module in self.encoder.modules()
            if isinstance(module, nn.ReLU)
        ]
        self.encoder(x)
        for handle in handles:
            handle.remove()
        return self.decoder(*seen.values())


class PatchesForward(nn.Module):
    """Puts functions in the place of its stages' `forward`, which keep what these return; it cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Classifier(), Up()
        self.kept: list[Tensor] = []
        for stage in self.encoder.stages:
            stage.forward = self.keeping(stage.forward)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        self.kept.clear()
        self.encoder(x)
        return self.decoder(*self.kept)

    def keeping(self, forward: Any) -> Any:
        def kept(x: Tensor) -> Tensor:
            self.kept.append(forward(x))
            return self.kept[-1]

        return kept


class Tokens(nn.Module):
    """A vision transformer that returns classes."""

    def __init__(self, patch: int = 8, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(3)
        )
        self.classes = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.classes(x[:, 0])


class HookedTransformer(nn.Module):
    """Hooks two blocks; each has a projection of its own, and the decoder reads their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.vit, self.first, self.second = Tokens(), nn.Conv2d(24, 16, 1), nn.Conv2d(24, 16, 1)
        self.head = nn.Conv2d(16, 2, 1)
        self.seen: list[Tensor] = []
        for block in (self.vit.blocks[0], self.vit.blocks[1]):
            block.register_forward_hook(self.see)

    def see(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(output)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.clear()
        self.vit(x)
        grid = x.shape[2] // 8, x.shape[3] // 8
        a, b = (tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for tokens in self.seen)
        return self.head(F.interpolate(self.first(a) + self.second(b), x.shape[2:]))


# Sums -----------------------------------------------------------------------------------------------------------------
class Levels(nn.Module):
    """The levels of an encoder, side by side with what a network makes of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_norm_relu(3, 8, stride=2), conv_norm_relu(8, 16, stride=2)
        self.down3, self.decoder = conv_norm_relu(16, 32, stride=2), Up()

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(a)
        return self.decoder(a, b, self.centre(self.down3(b)))

    def centre(self, z: Tensor) -> Tensor:
        return z


class SumOfBranches(Levels):
    """The decoder reads the sum of dilated convolutions of the code; it is returned by none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=d, dilation=d) for d in (1, 2))

    def centre(self, z: Tensor) -> Tensor:
        return torch.stack([branch(z) for branch in self.branches]).sum(0)


class SumAlongTheWay(SumOfBranches):
    """Each convolution sees what the one before it returned, and the code is added too."""

    def centre(self, z: Tensor) -> Tensor:
        first = F.relu(self.branches[0](z))
        return z + first + F.relu(self.branches[1](first))


class FunctionalState(Levels):
    """A recurrent block of which only the gates are a module; the state that the decoder reads is computed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(64, 128, 3, padding=1)

    def centre(self, z: Tensor) -> Tensor:
        hidden, memory = torch.zeros_like(z), torch.zeros_like(z)
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat([z, hidden], 1)).chunk(4, 1)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * memory.tanh()
        return hidden


# Pooling --------------------------------------------------------------------------------------------------------------
class PooledWithIndices(SegNet):
    """Nothing is computed on the coarsest grid, to which one pooling for all levels leads; skips go around it."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        pooled, index1 = self.pool(a)
        b = self.enc2(pooled)
        pooled, index2 = self.pool(b)
        c = self.enc3(pooled)
        pooled, index3 = self.pool(c)
        y = self.dec3(self.unpool(pooled, index3) + c)
        return self.dec1(self.unpool(self.dec2(self.unpool(y, index2) + b), index1) + a)


class CentreThrownAway(nn.Module):
    """The centre block is called, and the decoder reads what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.enc3 = double_conv(3, 8), double_conv(8, 16), double_conv(16, 32)
        self.pool, self.centre, self.decoder = nn.MaxPool2d(2), double_conv(32, 64), Up()

    def forward(self, x: Tensor) -> Tensor:
        a = self.pool(self.enc1(x))
        b = self.pool(self.enc2(a))
        z = self.pool(self.enc3(b))
        self.centre(z)
        return self.decoder(a, b, z)


# Classes --------------------------------------------------------------------------------------------------------------
class WalkedByIndex(nn.Module):
    """The layers of a classifier are called one by one; its last convolution halves once more, and gives classes."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((3, *WIDTHS)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.score, self.skip = nn.Conv2d(32, classes, 3, 2, 1), nn.Conv2d(16, classes, 1)
        self.up = nn.ConvTranspose2d(classes, classes, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        kept = {}
        for i in range(len(self.features)):
            x = kept[i] = self.features[i](x)
        y = self.skip(kept[5]) + F.interpolate(self.score(x), kept[5].shape[2:])
        return self.up(y)


class ClassesFromTheEncoder(nn.Module):
    """The encoder ends with a classifier; the decoder refines the classes with finer levels."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.encoder = EndsWithClasses(classes)
        self.fine = nn.Conv2d(16, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        classes, finer = self.encoder(x)
        sure = F.interpolate(classes, finer.shape[2:])
        return F.interpolate(sure + self.fine(finer) * (1 - sure.softmax(1)), x.shape[2:])


class EndsWithClasses(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down1, self.down2 = conv_norm_relu(3, 8, stride=2), conv_norm_relu(8, 16, stride=2)
        self.down3, self.classes = conv_norm_relu(16, 32, stride=2), nn.Conv2d(32, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        finer = self.down2(self.down1(x))
        return self.classes(self.down3(finer)), finer


# Axes of size 1 -------------------------------------------------------------------------------------------------------
class DownToOneSite(nn.Module):
    """Halves until a single site is left; takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 8, 16, 16, 32)
        pairs = list(itertools.pairwise(widths))
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairs)
        self.ups = nn.ModuleList(nn.Conv2d(a + b, a, 3, padding=1) for a, b in reversed(pairs[1:]))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        size, skips = x.shape[2:], []
        for down in self.downs:
            x = F.silu(down(x))
            skips.append(x)
        skips.pop()
        for up in self.ups:
            skip = skips.pop()
            x = F.silu(up(torch.cat([F.interpolate(x, skip.shape[2:]), skip], 1)))
        return self.head(F.interpolate(x, size))


class FilmOfOneFrame(nn.Module):
    """A network for films that takes an image for one of a single frame."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1))
        self.down1, self.down2 = nn.Conv3d(8, 16, (1, 2, 2), (1, 2, 2)), nn.Conv3d(16, 32, (1, 2, 2), (1, 2, 2))
        self.middle = nn.Conv3d(32, 32, (1, 3, 3), padding=(0, 1, 1))
        self.up2, self.up1 = (
            nn.ConvTranspose3d(32, 16, (1, 2, 2), (1, 2, 2)),
            nn.ConvTranspose3d(32, 8, (1, 2, 2), (1, 2, 2)),
        )
        self.head = nn.Conv3d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.stem(x.unsqueeze(2)))
        b = F.silu(self.down1(a))
        y = torch.cat([self.up2(F.silu(self.middle(F.silu(self.down2(b))))), b], 1)
        return self.head(torch.cat([self.up1(F.silu(y)), a], 1)).squeeze(2)
