"""An encoder and a decoder, whose code is easy to find, and the images that it is searched with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.parts import conv


def images() -> Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """Three levels, in a list; options for the traps of the search."""

    def __init__(self, channels: tuple[int, ...] = (8, 16, 32), attention: bool = False) -> None:
        super().__init__()
        stages = [conv(a, b, 2 if i else 1) for i, (a, b) in enumerate(zip((3, *channels), channels, strict=False))]
        self.stages = nn.ModuleList(stages)
        self.squeeze = nn.Conv2d(channels[-1], channels[-1], 1) if attention else None

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = F.relu(stage(x))
            features.append(x)
        if self.squeeze is not None:
            features[-1] = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        return features


class Net(nn.Module):
    """An encoder, something in the middle, and a decoder."""

    def __init__(self, encoder: nn.Module, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.middle = middle
        self.up1, self.up2 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        *skips, x = self.encoder(x)
        if self.middle is not None:
            x = self.middle(x)
        for up in (self.up1, self.up2):
            x = F.relu(up(x)) + skips.pop()
        return self.head(x)
