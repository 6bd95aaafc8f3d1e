"""Several images, modalities or networks at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.handwritten.parts import Merge, Stages, conv_norm_relu


class ChangeDetector(nn.Module):
    """One encoder for two images, called for each; the decoder sees how they differ."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stages(), Merge()

    def forward(self, x: Tensor) -> Tensor:
        before, after = x.chunk(2, 1)
        first, second = self.encoder(before), self.encoder(after)
        return self.decoder(*((b - a).abs() for a, b in zip(first, second, strict=True)))


class BatchedChangeDetector(nn.Module):
    """Two images as one batch of twice the size, until a module brings each level together."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stages(), Merge()
        self.fuse = nn.ModuleList(conv_norm_relu(2 * width, width, kernel=1) for width in (8, 16, 32))

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(torch.cat(x.chunk(2, 1)))
        return self.decoder(*(fuse(torch.cat(f.chunk(2), 1)) for fuse, f in zip(self.fuse, features, strict=True)))


class TwoStreams(nn.Module):
    """Two modalities with an encoder each, brought together at the bottleneck by a module or by a function."""

    def __init__(self, by_module: bool) -> None:
        super().__init__()
        self.color, self.depth = Stages(), Stages(1)
        self.fusion = conv_norm_relu(64, 32, kernel=1) if by_module else None
        self.decoder = Merge()

    def forward(self, x: Tensor) -> Tensor:
        *skips, color = self.color(x[:, :3])
        *more, depth = self.depth(x[:, 3:])
        z = torch.maximum(color, depth) if self.fusion is None else self.fusion(torch.cat([color, depth], 1))
        return self.decoder(*(a + b for a, b in zip(skips, more, strict=True)), z)


class Modulated(nn.Module):
    """A small network sees the image as a whole, on a coarser grid, and scales and shifts the channels of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stages(), Merge()
        self.context = nn.Sequential(*(conv_norm_relu(a, b, stride=2) for a, b in ((3, 8), (8, 8), (8, 16), (16, 32))))
        self.condition = nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.condition(self.context(x).mean((2, 3)))[:, :, None, None].chunk(2, 1)
        *skips, z = self.encoder(x)
        return self.decoder(*skips, z * (1 + scale) + shift)
