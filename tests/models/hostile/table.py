"""Little models, each of which breaks a replay that takes one liberty: all of them, by name."""

from __future__ import annotations

from tests.models.case import Case
from tests.models.hostile import (
    altered,
    checkpointing,
    containers,
    frozen,
    in_place,
    layouts,
    random_streams,
    repeated_calls,
    skips,
    statistics,
)

THEMES = (
    altered.CASES,
    checkpointing.CASES,
    containers.CASES,
    frozen.CASES,
    in_place.CASES,
    layouts.CASES,
    random_streams.CASES,
    repeated_calls.CASES,
    skips.CASES,
    statistics.CASES,
)
CASES: dict[str, Case] = {name: case for cases in THEMES for name, case in cases.items()}
