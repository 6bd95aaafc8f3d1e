"""Rows of MONAI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from tests.integrations.rows import Row


def monai(name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("monai.networks.nets")
        return getattr(library, name)(*args, **options)

    return build


LIBRARY = "MONAI"
ROWS = [
    Row(
        library=LIBRARY,
        name="BasicUNet 2-D",
        build=monai("BasicUNet", 2, 1, 2, features=(4, 8, 16, 32, 64, 8)),
        layer="down_4",
        shape=(2, 1, 64, 64),
        code=(2, 64, 4, 4),
        quick=True,
    ),
]
