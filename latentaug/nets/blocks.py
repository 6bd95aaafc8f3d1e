"""The residual blocks that the heads and the paper's network are made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


_CONV_TRANSPOSE: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


BATCH_NORM: dict[int, Callable[..., nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def check_spatial_dims(spatial_dims: int) -> None:
    """See that there is a network of so many spatial axes.

    Raises:
        ValueError: There is none.
    """
    if isinstance(spatial_dims, bool) or spatial_dims not in CONV:
        raise ValueError(f"spatial_dims must be 1, 2 or 3; got {spatial_dims!r}.")


class Encoder(nn.Module):
    """Halve an image `depth` times: a stem, residual blocks, and a projection to a code that is never negative."""

    def __init__(self, in_channels: int, width: int, depth: int, spatial_dims: int) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}.")
        # Doubling up to 8 · width, which the code always has: 1, 2, 4, 8, 8 for the paper's depth of 4.
        widths = [min(2**level, 8) * width for level in range(depth)] + [8 * width]
        self.stem = nn.Sequential(*double_conv(in_channels, width, spatial_dims), _leaky_relu())
        self.blocks = nn.Sequential(*(DownBlock(a, b, spatial_dims) for a, b in itertools.pairwise(widths)))
        self.projection = conv_norm_relu(8 * width, 8 * width, spatial_dims)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the code."""
        code: Tensor = self.projection(self.blocks(self.stem(image)))
        return code


class Decoder(nn.Module):
    """Upsample a code by each of `factors` in turn, with at most 4 · `width` channels, halved down to `width`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        factors: Sequence[tuple[int, ...]],
        width: int,
        spatial_dims: int,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        # 4, 2, 1, 1 for the paper's four levels; with fewer, the last that many of 4, 2, 1.
        levels = len(factors)
        widths = [in_channels, *(min(max(8 >> n, 1), 1 << (levels - n)) * width for n in range(1, levels + 1))]
        channels = zip(itertools.pairwise(widths), factors, strict=True)
        self.blocks = nn.Sequential(*(UpBlock(a, b, factor, transposed) for (a, b), factor in channels))
        self.projection = CONV[spatial_dims](widths[-1], out_channels, 1)
        initialize(self)

    def forward(self, code: Tensor) -> Tensor:
        """Return what the code stands for, linearly projected."""
        output: Tensor = self.projection(self.blocks(code))
        return output


class DownBlock(nn.Module):
    """Residual block on the input at half its size."""

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int) -> None:
        super().__init__()
        conv = CONV[spatial_dims]
        self.downsample = conv(in_channels, in_channels, 3, stride=2, padding=1)
        self.body = nn.Sequential(*double_conv(in_channels, out_channels, spatial_dims))
        self.shortcut = conv(in_channels, out_channels, 1)
        self.activation = _leaky_relu()

    def forward(self, x: Tensor) -> Tensor:
        """Return features at half the size, rounded up."""
        x = self.downsample(x)
        features: Tensor = self.activation(self.body(x).add_(self.shortcut(x)))
        return features


class UpBlock(nn.Module):
    """Residual block on the input at `factor` times its size."""

    def __init__(self, in_channels: int, out_channels: int, factor: tuple[int, ...], transposed: bool) -> None:
        super().__init__()
        spatial_dims = len(factor)
        self.upsample = (
            _CONV_TRANSPOSE[spatial_dims](in_channels, in_channels, factor, stride=factor)
            if transposed
            else nn.Upsample(scale_factor=tuple(map(float, factor)))
        )
        self.body = nn.Sequential(*double_conv(in_channels, out_channels, spatial_dims))
        self.shortcut = CONV[spatial_dims](in_channels, out_channels, 1)
        self.activation = _leaky_relu()

    def forward(self, x: Tensor) -> Tensor:
        """Return features at `factor` times the size."""
        x = self.upsample(x)
        features: Tensor = self.activation(self.body(x).add_(self.shortcut(x)))
        return features


def initialize(module: nn.Module) -> None:
    """Initialise convolutions and batch normalisation as the paper's networks are."""
    for child in module.modules():
        if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(child.weight)
        elif isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(child.weight, mean=1.0, std=0.02)
            nn.init.zeros_(child.bias)


def double_conv(in_channels: int, out_channels: int, spatial_dims: int) -> list[nn.Module]:
    """Two normalised convolutions, the first activated."""
    conv, norm = CONV[spatial_dims], BATCH_NORM[spatial_dims]
    return [
        conv(in_channels, out_channels, 3, padding=1),
        norm(out_channels),
        _leaky_relu(),
        conv(out_channels, out_channels, 3, padding=1),
        norm(out_channels),
    ]


def conv_norm_relu(in_channels: int, out_channels: int, spatial_dims: int) -> nn.Sequential:
    """Project to other channels, never negative."""
    conv = CONV[spatial_dims](in_channels, out_channels, 1)
    return nn.Sequential(conv, BATCH_NORM[spatial_dims](out_channels), nn.ReLU(inplace=True))


def _leaky_relu() -> nn.LeakyReLU:
    return nn.LeakyReLU(0.2, inplace=True)
