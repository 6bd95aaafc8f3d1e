"""What little models are put together from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1)


class Base(nn.Module):
    """The parts that most rows are put together from: a stem, a code at half the size, a decoder, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.code = conv(4, 6, 2)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.head = nn.Conv2d(4, 2, 1)


class Pyramid(nn.Module):
    """Returns its features in a container; three sizes, the code last."""

    def __init__(self, pack: Callable[[list[Tensor]], Any] = list) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 4), conv(4, 6, 2), conv(6, 8, 2)])
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        features = []
        for stage in self.stages:
            x = F.relu(stage(x))
            features.append(x)
        return self.pack(features)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up2, self.up1, self.head = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 4, 2, 2), conv(4, 2)

    def forward(self, a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        return self.head(self.up1(self.up2(z) + b) + a)
