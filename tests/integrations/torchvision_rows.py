"""Rows of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn

from tests.integrations.rows import Row


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("torchvision").models.segmentation
        return getattr(library, name)(weights=None, weights_backbone=None, num_classes=2, **options)

    return build


row = partial(Row, library="torchvision")
SMALL = (2, 3, 32, 48)

# The backbones return a dictionary: under "out" or "high" what the head upsamples, under "aux" or "low" a finer code.
# The ResNets dilate their last two stages and so stay at stride 8; the MobileNets stay at stride 16.
ROWS = [
    row(
        name="LR-ASPP mobilenet_v3_large",
        build=torchvision("lraspp_mobilenet_v3_large"),
        layer="backbone",
        path=("high",),
        shape=(2, 3, 64, 64),
        code=(2, 960, 4, 4),
        quick=True,
    ),
    row(
        name="FCN resnet50, auxiliary head",
        build=torchvision("fcn_resnet50", aux_loss=True),
        layer="backbone",
        path=("out",),
        shape=SMALL,
        code=(2, 2048, 4, 6),
    ),
    row(
        name="DeepLabV3 mobilenet_v3_large, auxiliary head",
        build=torchvision("deeplabv3_mobilenet_v3_large", aux_loss=True),
        layer="backbone",
        path=("out",),
        shape=(2, 3, 64, 96),
        code=(2, 960, 4, 6),
    ),
    row(
        name="DeepLabV3 resnet50",
        build=torchvision("deeplabv3_resnet50"),
        layer="backbone",
        path=("out",),
        shape=SMALL,
        code=(2, 2048, 4, 6),
    ),
]
