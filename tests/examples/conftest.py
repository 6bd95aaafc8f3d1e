"""Fixtures of the examples' tests; without what the examples import, these are skipped, and say what is missing."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDED = ("jinja2", "matplotlib", "nibabel", "scipy", "segmentation_models_pytorch", "torchio", "tqdm")
MISSING = [name for name in NEEDED if find_spec(name) is None]


class Skipped(pytest.File):
    """A file of tests that is not imported."""

    def collect(self) -> Iterator[pytest.Item]:
        pytest.skip(f"the examples need {', '.join(MISSING)}", allow_module_level=True)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Skip every file here while something is missing."""
    found = yield
    return [Skipped.from_parent(parent, path=file_path)] if MISSING and found else found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Measure no coverage here: these are tests of whole programs, and the library's own reach 99 % of it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("no_cover")
