"""Tokens from end to end, in the deepest levels only, or mixed by perceptrons."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.attention import TransformerBlock, mlp
from tests.models.handwritten.parts import conv_norm_relu


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.token_mix = nn.LayerNorm(width), mlp(tokens, 16)
        self.norm2, self.channel_mix = nn.LayerNorm(width), mlp(width, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class Mixer(nn.Module):
    """Tokens mixed by perceptrons; the last layer writes all pixels of a patch: more channels than the code has."""

    def __init__(self, tokens: int = 24, width: int = 32, patch: int = 8) -> None:
        super().__init__()
        self.patch, self.patch_embed = patch, nn.Conv2d(3, width, patch, patch)
        self.mixer = nn.Sequential(MixerBlock(tokens, width), MixerBlock(tokens, width))
        self.to_pixels = nn.Linear(width, 2 * patch**2)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patch_embed(x)
        tokens = self.to_pixels(self.mixer(grid.flatten(2).transpose(1, 2)))
        return F.pixel_shuffle(tokens.transpose(1, 2).reshape(len(x), -1, *grid.shape[2:]), self.patch)


class PatchMerging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x.unflatten(1, size)
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.reduction(self.norm(x.flatten(1, 2)))


class PatchExpanding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.norm = nn.Linear(width, 2 * width, bias=False), nn.LayerNorm(width // 2)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.expand(x).unflatten(1, size).unflatten(3, (2, 2, -1))
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2).flatten(1, 2))


class TokenUNet(nn.Module):
    """A U-Net of tokens [B, N, C] from end to end: merging and expanding patches, skips by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 2, 2)
        self.block1, self.block2, self.bottleneck = (
            nn.Sequential(TransformerBlock(width), TransformerBlock(width)) for width in (8, 16, 32)
        )
        self.merge1, self.merge2 = PatchMerging(8), PatchMerging(16)
        self.expand2, self.expand1 = PatchExpanding(32), PatchExpanding(16)
        self.concat2, self.concat1 = nn.Linear(32, 16), nn.Linear(16, 8)
        self.up2, self.up1, self.output = TransformerBlock(16), TransformerBlock(8), nn.ConvTranspose2d(8, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        size, half, quarter = (tuple(n // stride for n in x.shape[2:]) for stride in (1, 2, 4))
        a = self.block1(x.flatten(2).transpose(1, 2))
        b = self.block2(self.merge1(a, size))
        y = self.bottleneck(self.merge2(b, half))
        y = self.up2(self.concat2(torch.cat([self.expand2(y, quarter), b], -1)))
        y = self.up1(self.concat1(torch.cat([self.expand1(y, half), a], -1)))
        return self.output(y.transpose(1, 2).unflatten(2, size))


class OverlappingEmbed(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inputs, outputs, 3, 2, 1), nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2], x.shape[3]


class ShiftedBlock(nn.Module):
    """A perceptron on tokens whose channels were shifted along an axis, with a convolution between its layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.dwconv = nn.Conv2d(width, width, 3, 1, 1, groups=width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        grid = self.norm(x).transpose(1, 2).unflatten(2, (height, width))
        grid = torch.cat([part.roll(i - 1, 2) for i, part in enumerate(grid.chunk(4, 1))], 1)
        y = self.fc1(grid.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (height, width))
        return x + self.fc2(F.gelu(self.dwconv(y)).flatten(2).transpose(1, 2))


class TokenizedUNet(nn.Module):
    """Convolutions above, tokens in the two deepest levels; the decoder's first block stands on the coarsest grid."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = conv_norm_relu(3, 8)
        self.patch_embed1, self.patch_embed2 = OverlappingEmbed(8, 16), OverlappingEmbed(16, 32)
        self.block1, self.block2 = ShiftedBlock(16), ShiftedBlock(32)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(32)
        self.decoder1, self.dbn1 = nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.decoder2, self.dbn2 = nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.final = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        t1 = F.max_pool2d(self.encoder1(x), 2)
        out, height, width = self.patch_embed1(t1)
        out = self.norm1(self.block1(out, height, width))
        t2 = out.transpose(1, 2).reshape(len(x), -1, height, width)
        out, height, width = self.patch_embed2(t2)
        out = self.norm2(self.block2(out, height, width))
        out = out.transpose(1, 2).reshape(len(x), -1, height, width)
        out = F.relu(F.interpolate(self.dbn1(self.decoder1(out)), scale_factor=2, mode="bilinear"))
        out = torch.add(out, t2)
        out = F.relu(F.interpolate(self.dbn2(self.decoder2(out)), scale_factor=2, mode="bilinear"))
        return self.final(F.interpolate(torch.add(out, t1), scale_factor=2))


class Residual(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) + x


class ConvMixer(nn.Module):
    """Patches at once, then blocks that all keep the grid."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.GELU(), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(*(self.block(width) for _ in range(3)))
        self.head = nn.Sequential(nn.ConvTranspose2d(width, 8, 4, 4), nn.GELU(), nn.ConvTranspose2d(8, 2, 2, 2))

    @staticmethod
    def block(width: int) -> nn.Sequential:
        spatial = nn.Conv2d(width, width, 5, groups=width, padding=2)
        return nn.Sequential(
            Residual(nn.Sequential(spatial, nn.GELU(), nn.BatchNorm2d(width))), nn.Conv2d(width, width, 1), nn.GELU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))  # logits at half the size
