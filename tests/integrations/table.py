"""The table of models in the docs: written by the matrix, and held against it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.tap.latent_tap import LatentTap
from latentaug.tap.proof import relative_change
from latentaug.tracing.location import Location
from tests.integrations.rows import Row

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
START, END = "<!-- table: written by the tests -->\n", "<!-- end of the table -->\n"
HEAD = "| model | layer found | code | leak | replay / forward |\n| --- | --- | --- | --- | --- |\n"
DEAD = 1e-4  # influence below which the signal of an untrained network is lost in rounding
REPEATS = 3


class Table:
    """Rows of the documented table by library and model; in writing, the rows measured so far."""

    def __init__(self, writing: bool) -> None:
        self.writing = writing
        self.documented = dict(_read(PAGE.read_text()))
        self.measured: dict[tuple[str, str], list[str]] = {}

    def check(self, row: Row, location: Location, leak: float | None) -> None:
        """Hold a row of the matrix against its line, or write that."""
        line = [f"`{location}`", " × ".join(map(str, location.shape)), "n/a" if leak is None else f"{leak:.2f}"]
        if self.writing:
            self.measured[row.library, row.name] = [*line, f"{replay_over_forward(row):.2f}"]
        else:
            documented = self.documented.get((row.library, row.name), [])
            # The leak is that of random weights, which libraries draw as they please.
            assert documented[:2] == line[:2], (
                "run `pytest tests/integrations -m 'slow or not slow' --write-model-table`"
            )

    def write(self, order: list[Row]) -> None:
        """Put the measured rows into the page, in the order of the matrix."""
        page = PAGE.read_text()
        before, after = page.split(START)[0], page.split(END)[1]
        kept = {**dict(_read(page)), **self.measured}
        PAGE.write_text(before + START + "".join(_lines(order, kept)) + END + after)


def _lines(order: list[Row], cells: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    library = None
    for row in order:
        if row.library != library:
            library = row.library
            yield f"\n### {library}\n\n{HEAD}"
        if line := cells.get((row.library, row.name)):
            yield "| " + " | ".join([row.name, *line]) + " |\n"
    yield "\n"


def _read(page: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
    library = ""
    for line in page.split(START)[1].split(END)[0].splitlines():
        if line.startswith("### "):
            library = line.removeprefix("### ")
        elif line.startswith("| ") and not line.startswith(("| model", "| ---")):
            name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            yield (library, name), cells


def leak_of(tap: LatentTap, output: Any) -> float | None:
    """Return the share of the output that does not pass through the code; None where no signal does."""
    influence = relative_change(tap.replay(torch.zeros_like(tap.code)), output)
    return None if influence < DEAD else min(max(1 - influence, 0.0), 1.0)


def replay_over_forward(row: Row) -> float:
    """Time a replay against a plain forward on realistic images: one thread, eval mode, least of several."""
    model = row.model(False).float()
    images = row.large_images()
    with torch.no_grad():
        forward = _least(lambda: model(images))
        with LatentTap(model, row.spot, call=row.call) as tap:
            model(images)
            code: Tensor = tap.code * 0.5
            return _least(lambda: tap.replay(code)) / forward


def _least(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.process_time()  # other processes on the machine do not count
        run()
        times.append(time.process_time() - start)
    return min(times)


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """The documented table; with --write-model-table, what is measured replaces it."""
    from tests.integrations.test_matrix import ROWS

    table = Table(request.config.getoption("--write-model-table"))
    yield table
    if table.writing:
        table.write(ROWS)
