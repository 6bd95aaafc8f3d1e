"""Codes inside modules that return others: levels that hold each other, wrappers, paths side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.parts import conv
from tests.models.searched.parts import Encoder, Net


class Wrapped(nn.Module):
    """The network is one level further down, and a head refines its logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.refine = net, conv(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.refine(self.net(x))}


class UInU(nn.Module):
    """Levels that hold each other, around a bottom."""

    def __init__(self, depth: int, channels: int = 8) -> None:
        super().__init__()
        self.down = conv(channels, 2 * channels, 2)
        self.inner = UInU(depth - 1, 2 * channels) if depth > 1 else nn.Conv2d(2 * channels, 2 * channels, 1)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.inner(self.down(x)))


class LevelsOfDynUNet(nn.Module):
    """Levels that take in a finer grid than they return, as MONAI's DynUNet nests them."""

    def __init__(self) -> None:
        super().__init__()
        levels: nn.Module = conv(32, 64, 2)
        for channels in (32, 16, 8):
            levels = LevelOfDynUNet(channels, levels)
        self.levels, self.head = levels, conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.levels(x))


class LevelOfDynUNet(nn.Module):
    def __init__(self, channels: int, inner: nn.Module) -> None:
        super().__init__()
        self.down = conv(3, channels) if channels == 8 else conv(channels // 2, channels, 2)
        self.inner, self.up = inner, nn.ConvTranspose2d(2 * channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.up(self.inner(x))


class ResizesItsInput(nn.Module):
    """Runs a network on images of one size, whatever the size of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(Encoder())

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.net(F.interpolate(x, (16, 24))), x.shape[2:])


class HandsThrough(nn.Module):
    """Also returns the code of its encoder, which its decoder has used by then."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel = PixelModule()
        self.head = conv(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code, pixels = self.pixel(x)
        return {"logits": self.head(pixels) + code.mean(), "hidden": code}


class PixelModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2))
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=4), conv(32, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return code, self.decoder(code)


class ContextPath(nn.Module):
    """Goes down to a wide code, and comes up again before it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.narrow, self.refine = Encoder((8, 16, 32)), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, half, quarter = self.encoder(x)
        return self.refine(half) + F.interpolate(self.narrow(quarter), half.shape[2:])


class TwoPaths(nn.Module):
    """Detail beside context, as BiSeNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.detail, self.context, self.head = conv(3, 16, 2), ContextPath(), conv(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(torch.cat([self.detail(x), self.context(x)], 1)), x.shape[2:])
