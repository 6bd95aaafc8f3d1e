"""What random networks are made of: layers and blocks of all habits that are around, drawn from a random stream."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class Piece(nn.Module):
    """A module that prints how it does what it does."""

    how: str = ""

    def extra_repr(self) -> str:
        return self.how


# Layers ---------------------------------------------------------------------------------------------------------------
def conv(rng: Random, dims: int, given: int, returned: int, size: int = 3) -> nn.Module:
    """Draw a convolution that keeps the size: plain, grouped, or with weights made of others."""
    groups = rng.choice([1, 1, 1, 2])
    layer: nn.Module = CONVS[dims](
        given,
        returned,
        size,
        padding=size // 2,
        groups=groups if given % 2 == returned % 2 == 0 else 1,
        bias=rng.random() < 0.7,
    )
    kind = rng.random()
    if kind < 0.06:
        return nn.utils.parametrizations.weight_norm(layer)
    if kind < 0.10:
        return nn.utils.spectral_norm(layer)
    if kind < 0.12:
        return nn.utils.parametrizations.spectral_norm(layer)
    if kind < 0.14:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated, but such models are around
            return nn.utils.weight_norm(layer)
    return layer


class OwnNorm(Piece):
    """Batch normalisation as people write it: statistics in buffers, or in plain tensors, moved in one of four ways."""

    def __init__(self, channels: int, how: str) -> None:
        super().__init__()
        self.how, self.gain = how, nn.Parameter(torch.ones(channels))
        if how == "attribute":
            self.mean = torch.zeros(channels, dtype=torch.float64)
        else:
            self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean = x.transpose(0, 1).flatten(1).mean(1)
            with torch.no_grad():
                if self.how == "in place":
                    self.mean.mul_(0.9).add_(mean.to(self.mean), alpha=0.1)
                elif self.how == "data":
                    self.mean.data.copy_(0.9 * self.mean + 0.1 * mean)
                else:
                    self.mean = 0.9 * self.mean + 0.1 * mean.to(self.mean)
        mean = (0.5 * mean + 0.5 * self.mean if self.training else self.mean).to(x.dtype)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return (x - mean.reshape(shape)) * self.gain.reshape(shape)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels, as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def norm(rng: Random, dims: int, channels: int) -> nn.Module:
    """Draw a normalisation."""
    kinds: list[Callable[[], nn.Module]] = [
        lambda: BATCH[dims](channels),
        lambda: BATCH[dims](channels, momentum=rng.choice([0.1, 0.5, None])),
        lambda: BATCH[dims](channels, track_running_stats=False),
        lambda: INSTANCE[dims](channels, affine=True, track_running_stats=rng.random() < 0.4),
        lambda: nn.GroupNorm(2 if channels % 2 == 0 else 1, channels),
        lambda: ChannelNorm(channels),
        lambda: OwnNorm(channels, rng.choice(["in place", "assigned", "data", "attribute"])),
        nn.Identity,
    ]
    return rng.choice(kinds)()


class Statement(Piece):
    """An activation in place, whose result nobody takes: `self.relu(x)`."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.01
        self.act(x)
        return x


def activation(rng: Random) -> nn.Module:
    """Draw an activation, half of them in place."""
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.ReLU(inplace=True),
        lambda: nn.ReLU(inplace=rng.random() < 0.5),
        lambda: nn.LeakyReLU(0.1, inplace=True),
        lambda: nn.SiLU(inplace=rng.random() < 0.5),
        lambda: nn.ELU(inplace=rng.random() < 0.5),
        nn.GELU,
        nn.PReLU,
        lambda: Statement(nn.ReLU(inplace=True)),
    ]
    return rng.choice(kinds)()


class Drop(Piece):
    """Dropout and its relatives, from any of the random streams."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "always":
            return F.dropout(x, 0.2, training=True)
        if not self.training:
            return x
        if self.how == "functional":
            return F.dropout(x, 0.3, self.training)
        if self.how == "in place":
            return F.dropout(x * 1.0, 0.3, self.training, inplace=True)
        if self.how == "noise":
            return x + 0.1 * torch.randn_like(x)
        if self.how == "numpy":
            import numpy as np

            return x * float(np.random.uniform(0.5, 1.5))  # noqa: NPY002 - the global stream is what is tried
        import random

        return x * random.choice([0.5, 1.0])


def drop(rng: Random, dims: int | None = None) -> nn.Module:
    """Draw a dropout."""
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.Dropout(0.3),
        lambda: nn.Dropout(0.3, inplace=True),
        lambda: DROPOUT[dims](0.3) if dims else nn.AlphaDropout(0.2),
        lambda: Drop(rng.choice(["functional", "in place", "noise"])),
        lambda: Drop(rng.choice(["always", "numpy", "python", "functional"])),
    ]
    return rng.choice(kinds)()


# Blocks that keep channels and size -----------------------------------------------------------------------------------
def conv_block(rng: Random, dims: int, given: int, returned: int) -> nn.Sequential:
    """Draw convolution, normalisation, dropout and activation, in an order that is around."""
    layers = [conv(rng, dims, given, returned), norm(rng, dims, returned), activation(rng)]
    if rng.random() < 0.15:
        layers = [norm(rng, dims, given), activation(rng), conv(rng, dims, given, returned)]
    if rng.random() < 0.3:
        layers.insert(rng.randrange(1, len(layers) + 1), drop(rng, dims))
    return nn.Sequential(*layers)


class Residual(Piece):
    """A block whose input is added to its output: in one of the ways that are around."""

    def __init__(self, block: nn.Module, how: str) -> None:
        super().__init__()
        self.block, self.how = block, how
        self.scale = nn.Parameter(torch.full((), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in place":
            y = self.block(x)
            y += x
            return y
        if self.how == "depth" and self.training and bool(torch.rand(()) < 0.3):
            return x
        return x + self.scale * self.block(x)


class Excite(Piece):
    """Squeeze and excitation."""

    def __init__(self, channels: int, in_place: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 2), nn.Linear(2, channels)
        self.how = "in place" if in_place else ""

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(x.flatten(2).mean(2)))).sigmoid()
        gate = gate.reshape(*gate.shape, *(1,) * (x.ndim - 2))
        return (x * 1.0).mul_(gate) if self.how else x * gate


class Attention(Piece):
    """Attention over the positions of a map, or over tokens: PyTorch's module, or its function."""

    def __init__(self, channels: int, how: str, tokens: bool) -> None:
        super().__init__()
        self.how, self.tokens = how, tokens
        self.norm = nn.LayerNorm(channels)
        if how == "module":
            self.attention = nn.MultiheadAttention(channels, 2, dropout=0.1, batch_first=True)
        else:
            self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        small = x if self.tokens else F.avg_pool2d(x, 4) if x.ndim == 4 and x.shape[-1] > 12 else x
        t = x if self.tokens else small.flatten(2).transpose(1, 2)
        y = self.norm(t)
        if self.how == "module":
            y, _ = self.attention(y, y, y, need_weights=False)
        elif self.how == "function":
            q, k, v = self.qkv(y).chunk(3, -1)
            y = self.proj(F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0))
        else:
            q, k, v = self.qkv(y).chunk(3, -1)
            y = self.proj((q @ k.transpose(1, 2) / 2).softmax(-1) @ v)
        t = t + y
        if self.tokens:
            return t
        return x + F.interpolate(t.transpose(1, 2).reshape(small.shape), size=x.shape[2:])


class Recurrent(nn.Module):
    """One block that is called several times, as in R2U-Net."""

    def __init__(self, block: nn.Module, times: int) -> None:
        super().__init__()
        self.block, self.times = block, times

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(self.times):
            y = self.block(x + 0.5 * y)
        return y


class Dense(nn.Module):
    """Layers that read all before them."""

    def __init__(self, layers: list[nn.Module], mix: nn.Module) -> None:
        super().__init__()
        self.layers, self.mix = nn.ModuleList(layers), mix

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.mix(torch.cat(features, 1))


class Parallel(Piece):
    """Branches that are averaged, or one that is chosen by what comes in."""

    def __init__(self, branches: list[nn.Module], how: str) -> None:
        super().__init__()
        self.branches, self.how = nn.ModuleList(branches), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "choice":
            return self.branches[int(bool(x.detach().float().mean() > 0))](x)
        return torch.stack([branch(x) for branch in self.branches]).mean(0)


class Checkpointed(nn.Module):
    """Computed again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            return checkpoint(self.block, x, use_reentrant=False)
        return self.block(x)


def is_repeatable(block: nn.Module) -> bool:
    """Tell whether a block computes the same when checkpointing runs it again, whatever ran in between."""
    return not any(
        isinstance(module, OwnNorm) or getattr(module, "how", "") in ("numpy", "python") or _is_spectral(module)
        for module in block.modules()
    )


def _is_spectral(module: nn.Module) -> bool:
    hooked = any("SpectralNorm" in type(hook).__name__ for hook in module._forward_pre_hooks.values())
    return hooked or type(module).__name__ == "_SpectralNorm"


class Frozen(Piece):
    """A part without gradients."""

    def __init__(self, block: nn.Module, how: str) -> None:
        super().__init__()
        self.block, self.how = block.requires_grad_(how != "weights"), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.block(x)
        return self.block(x).detach() if self.how == "detached" else self.block(x)


class Named(Piece):
    """A block that returns its result in a container, of which the reader takes it out again."""

    def __init__(self, block: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = Boxed(block, how), how

    def forward(self, x: Tensor) -> Tensor:
        box = self.inner(x)
        if self.how == "list":
            return box.pop()
        return box["out"] if self.how == "dict" else box[0]


class Boxed(Piece):
    """Returns a container, in which one tensor may stand twice."""

    def __init__(self, block: nn.Module, how: str) -> None:
        super().__init__()
        self.block, self.how = block, how

    def forward(self, x: Tensor) -> object:
        y = self.block(x)
        if self.how == "list":
            return [x, y]
        return {"out": y, "again": y, "none": None} if self.how == "dict" else (y, y.mean())
