"""Rows of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from tests.integrations.rows import Row


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("torchvision").models.segmentation
        return getattr(library, name)(weights=None, weights_backbone=None, num_classes=2, **options)

    return build


LIBRARY = "torchvision"
ROWS = [
    Row(
        library=LIBRARY,
        name="LR-ASPP mobilenet_v3_large",
        build=torchvision("lraspp_mobilenet_v3_large"),
        layer="backbone",
        path=("high",),
        shape=(2, 3, 64, 64),
        code=(2, 960, 4, 4),
        quick=True,
    ),
]
