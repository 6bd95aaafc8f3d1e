"""Rows of segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from tests.integrations.rows import Row


def smp(name: str, encoder: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("segmentation_models_pytorch")
        return getattr(library, name)(encoder, encoder_weights=None, classes=2, **options)

    return build


LIBRARY = "segmentation-models-pytorch"
ROWS = [
    Row(
        library=LIBRARY,
        name="Unet resnet18",
        build=smp("Unet", "resnet18"),
        layer="encoder",
        path=(5,),
        shape=(2, 3, 64, 96),
        code=(2, 512, 2, 3),
        quick=True,
    ),
]
