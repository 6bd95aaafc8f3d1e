"""More than one output."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.parts import Merge, Stages, double_conv, up_to


class TaskOutput(NamedTuple):
    logits: Tensor
    presence: Tensor


class WithClassifier(nn.Module):
    """A second head tells from the pooled bottleneck which classes are there."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stages(), Merge()
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Flatten(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> TaskOutput:
        features = self.encoder(x)
        return TaskOutput(self.decoder(*features), self.classifier(self.pool(features[-1])))


class DeeplySupervised(nn.Module):
    """A list of logits, coarser and coarser, in train mode; one tensor in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.bottom = double_conv(3, 8), double_conv(8, 16), double_conv(16, 32)
        self.dec2, self.dec1 = double_conv(48, 16), double_conv(24, 8)
        self.out1, self.out2, self.out3 = nn.Conv2d(8, 2, 1), nn.Conv2d(16, 2, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        a = self.enc1(x)
        b = self.enc2(F.avg_pool2d(a, 2))
        z = self.bottom(F.avg_pool2d(b, 2))
        y2 = self.dec2(torch.cat([up_to(z, b), b], 1))
        y1 = self.dec1(torch.cat([up_to(y2, a), a], 1))
        return [self.out1(y1), self.out2(y2), self.out3(z)] if self.training else self.out1(y1)


class TwoDecoders(nn.Module):
    """Segments, and reconstructs the image from the same features, to learn without labels too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.segment, self.reconstruct = Stages(), Merge(), Merge(classes=3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(x)
        return {"reconstruction": self.reconstruct(*features), "segmentation": self.segment(*features)}
