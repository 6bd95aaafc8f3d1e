"""Codes that are no real numbers in [B, C, *S]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.case import Case, entered_in
from tests.models.parts import conv

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


@hostile("blocks")
class TokensWithPrefix(nn.Module):
    """A code of tokens, one of them no site."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.head = nn.ConvTranspose2d(8, 2, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = self.blocks(torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1))
        grid = tokens[:, 1:].mT.unflatten(2, (4, 4))
        return self.head(grid) + tokens[:, :1].mean()


@hostile("encoder")
class ChannelsLast(nn.Module):
    """A code [B, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder, self.head = conv(3, 4, 2), nn.Linear(4, 6), nn.ConvTranspose2d(6, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(self.stem(x).permute(0, 2, 3, 1))
        return self.head(z.permute(0, 3, 1, 2))


@hostile("spectrum")
class ComplexCode(nn.Module):
    """The code is a spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.spectrum, self.head = conv(3, 4), Spectrum(), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(torch.fft.irfft2(self.spectrum(a), s=x.shape[2:]) + a)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x) * self.scale
