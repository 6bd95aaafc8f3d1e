"""What networks written by hand are put together from."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_norm_relu(inputs, outputs), conv_norm_relu(outputs, outputs))


def up_to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class BasicBlock(nn.Module):
    """ResNet's block: activations in place, and `+=`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class Stages(nn.Module):
    """An encoder that returns a dictionary, or a list, of features."""

    def __init__(self, inputs: int = 3, widths: tuple[int, ...] = (8, 16, 32), named: bool = False) -> None:
        super().__init__()
        self.stages = nn.ModuleList(BasicBlock(a, b, 2) for a, b in itertools.pairwise((inputs, *widths)))
        self.named = named

    def forward(self, x: Tensor) -> Any:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return {f"res{i}": f for i, f in enumerate(features, start=1)} if self.named else features


class Merge(nn.Module):
    """A decoder of features, finest first."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32), classes: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv_norm_relu(a + b, a) for a, b in reversed(list(itertools.pairwise(widths))))
        self.predict = nn.Conv2d(widths[0], classes, 1)

    def forward(self, *features: Tensor) -> Tensor:
        *skips, x = features
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(torch.cat([up_to(x, skip), skip], 1))
        return F.interpolate(self.predict(x), scale_factor=2)
