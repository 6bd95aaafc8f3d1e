"""Segmentation models for cooperative training: with skip connections, of tokens, under deep supervision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class SkipNet(nn.Module):
    """Two levels, with skip connections, batch normalisation and dropout; in 2-D or 3-D."""

    def __init__(
        self, in_channels: int = 1, num_classes: int = 3, width: int = 4, spatial_dims: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        conv, norm = CONV[spatial_dims], NORM[spatial_dims]

        def block(a: int, b: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(conv(a, b, 3, stride, 1), norm(b), nn.ReLU(inplace=True), conv(b, b, 3, 1, 1), norm(b))

        self.stem = block(in_channels, width)
        self.down = block(width, 2 * width, stride=2)
        self.bottleneck = block(2 * width, 4 * width, stride=2)
        self.dropout = nn.Dropout(dropout)
        self.up = block(6 * width, 2 * width)
        self.top = block(3 * width, width)
        self.final = conv(width, num_classes, 1)

    def forward(self, images: Tensor) -> Any:
        stem = self.stem(images)
        down = self.down(stem)
        deep = self.bottleneck(down)
        up = self.dropout(self.up(torch.cat([F.interpolate(deep, size=down.shape[2:]), down], 1)))
        return self.final(self.top(torch.cat([F.interpolate(up, size=stem.shape[2:]), stem], 1)))


class Tokens(nn.Module):
    """A transformer in miniature: a class token and one token per 4 x 4 patch, [B, N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 6, 4, 4)
        self.block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))
        self.head = nn.Linear(6, 2 * 16)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images)
        tokens = patches.flatten(2).movedim(1, 2)
        tokens = self.block(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        pixels = self.head(tokens[:, 1:] + tokens[:, :1]).movedim(1, 2).unflatten(2, patches.shape[2:])
        return F.pixel_shuffle(pixels, 4)


class Supervised(SkipNet):
    """Returns logits of the first level, of a coarser one, and last those that passed through the bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(4, 3, 1)
        self.coarse = nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        stem = self.stem(images)
        return [self.early(stem), self.coarse(self.down(stem)), super().forward(images)]


class Returning(SkipNet):
    """Returns what is made of its logits."""

    def __init__(self, made_of: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.made_of = made_of

    def forward(self, images: Tensor) -> Any:
        return self.made_of(super().forward(images))


class Levels(nn.Module):
    """A U-Net whose encoder returns a list of its levels, at strides 1, 2, 4 and 8; the decoder reads three."""

    class Encoder(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
                for a, b in ((1, width), (width, 2 * width), (2 * width, 4 * width))
            )

        def forward(self, images: Tensor) -> list[Tensor]:
            levels = [images]
            for block in self.blocks:
                levels.append(block(levels[-1]))
            return levels

    class Decoder(nn.Module):
        def __init__(self, width: int, dropout: float) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True), nn.Dropout(dropout))
                for a, b in ((6 * width, 2 * width), (3 * width, width), (width, width))
            )

        def forward(self, levels: list[Tensor]) -> Tensor:
            skips = levels[1:]
            x = skips.pop()
            for block in self.blocks:
                x = F.interpolate(x, scale_factor=2)
                x = block(torch.cat([x, skips.pop()], 1) if skips else x)
            return x

    def __init__(self, num_classes: int = 3, width: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = self.Encoder(width)
        self.decoder = self.Decoder(width, dropout)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.decoder(self.encoder(images)))
