"""Models that do not call the same modules in every pass."""

from __future__ import annotations

import random

from torch import Tensor, nn

from tests.models.parts import conv


class Wanders(nn.Module):
    """Skips blocks at random, as stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv(3, 3) for _ in range(6))
        self.code, self.head = conv(3, 4, 2), nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if random.random() < 0.5:
                x = x + block(x)
        return self.head(self.code(x))


class Shrinks(nn.Module):
    """Takes fewer blocks from some moment on."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 3
        self.blocks = nn.ModuleList(conv(3, 3) for _ in range(3))
        self.code, self.head = conv(3, 4, 2), nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks[: self.depth]:
            x = block(x)
        return self.head(self.code(x))
