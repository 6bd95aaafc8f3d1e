"""Fixtures of the study's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure no coverage here: these are tests of whole programs, and the library's own reach 99 % of it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("no_cover")
