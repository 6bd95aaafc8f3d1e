"""Every pair of `state_NAME.npz` and `model_NAME_PRECISION.npz` in the folder is tested.

Sizes and settings come from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from tests.parity.model.reference import FOLDER, Reference


@cache
def load(network: str, precision: str) -> Reference:
    return Reference(network, precision)


def cases(precision: str, *, with_settings: bool) -> Iterator[Any]:
    """One case for each network in the folder, or each of its settings; a missing file skips its own tests, by name."""
    networks = {path.stem.removeprefix("state_") for path in FOLDER.glob("state_*.npz")}
    networks |= {re.sub(r"^model_|_fp(32|64)$", "", path.stem) for path in FOLDER.glob("model_*.npz")}
    for network in sorted(networks) or ["*"]:
        files = [f"state_{network}.npz", f"model_{network}_{precision}.npz"]
        missing = [name for name in files if not (FOLDER / name).exists()]
        if missing:
            skip = pytest.mark.skip(reason=f"{FOLDER} has no {' and no '.join(missing)}")
            yield pytest.param(*[None] * (1 + with_settings), id=network, marks=skip)
        elif with_settings:
            reference = load(network, precision)
            yield from (pytest.param(reference, setting, id=f"{network}-{setting}") for setting in reference.settings)
        else:
            yield pytest.param(load(network, precision), id=network)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fill `reference` (float64) or `reference32`, and `setting`, with what the folder holds."""
    for fixture, precision in (("reference", "fp64"), ("reference32", "fp32")):
        if fixture in metafunc.fixturenames:
            with_settings = "setting" in metafunc.fixturenames
            names = [fixture, "setting"] if with_settings else [fixture]
            metafunc.parametrize(names, list(cases(precision, with_settings=with_settings)))
