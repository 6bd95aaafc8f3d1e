"""Golden numbers: what the authors' released code computes on synthetic images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder named by LATENTAUG_GOLDEN_DIR, or the one beside these tests."""
    return Path(os.environ.get("LATENTAUG_GOLDEN_DIR") or Path(__file__).parent / "data")


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> Callable[[str], dict[str, Any]]:
    """A loader of golden files by name: a dict of tensors from .npz, or what a .json holds; a missing one skips."""

    @cache
    def load(name: str) -> dict[str, Any]:
        path = golden_dir / name
        if not path.exists():
            pytest.skip(f"{golden_dir} has no {name}")
        if path.suffix == ".json":
            content: dict[str, Any] = json.loads(path.read_text())
            return content
        with np.load(path) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    return load
