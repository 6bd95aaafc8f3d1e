"""A U-Net with one skip connection, whose code is the second of its encoder's features."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.parts import conv
from tests.support.random_streams import seed_all


class UNet(nn.Module):
    """Encoder with batch statistics and dropout that returns a list, decoder that takes it, head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = UNetEncoder()
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, z = self.encoder(x)
        return self.head(F.relu(self.norm(self.up(z))) + a)


class UNetEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.drop, self.down = conv(3, 4), nn.BatchNorm2d(4), nn.Dropout(0.3), conv(4, 6, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.drop(F.relu(self.norm(self.stem(x))))
        return [a, F.relu(self.down(a))]


def unet(train: bool = False) -> UNet:
    torch.manual_seed(3)
    return UNet().double().train(train)


def hooked(images: Tensor, change: Callable[[Tensor], Tensor], *, train: bool = False) -> tuple[nn.Module, Tensor]:
    """Run a fresh U-Net, seeded alike, with a plain hook that returns the changed code."""
    model = unet(train)
    model.encoder.register_forward_hook(lambda module, args, output: [output[0], change(output[1])])
    seed_all(0)
    return model, model(images)
