"""The results in the repository: small enough to read, and what the docs quote of them is in them."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
from cardiac.report.compare_runs import together
from cardiac.report.comparison import SHIFTED, compare
from cardiac.run.scores import FILE

from tests.examples.test_architecture import EXAMPLES

RESULTS = EXAMPLES.parent / "benchmarks" / "results"
CARDIAC = RESULTS / "cardiac_cpu"
MEGABYTE = 1_000_000


def test_results_are_small() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5 * MEGABYTE
    assert [path for path in files if path.suffix != ".png" and path.stat().st_size > MEGABYTE] == []


def test_what_can_be_drawn_again_is_not_kept() -> None:
    derived = {path.parent for path in chain(CARDIAC.rglob("table.json"), CARDIAC.rglob("comparison.csv"))}
    assert not derived & {path.parent for path in CARDIAC.rglob("scores.csv*")}


def test_commands_name_no_folder_of_the_machine_that_ran_them() -> None:
    kept = [path.read_text() for name in ("done.json", "configuration.json") for path in CARDIAC.rglob(name)]
    assert kept
    assert not [text for text in kept if '"/' in text or " /" in text or "=/" in text]


@pytest.mark.parametrize("folder", sorted(path.parent for path in CARDIAC.rglob(FILE)), ids=lambda path: path.name)
def test_scores_can_be_read(folder: Path) -> None:
    trained = {(path.parent.parent.name, path.parent.name) for path in folder.glob("*/draw-*/done.json")}
    assert {(score.method, f"draw-{score.draw}") for score in together([folder])} == trained


def test_the_gain_that_the_docs_quote_is_that_of_the_scores() -> None:
    scores = together([CARDIAC / "unet_last", CARDIAC / "unet_details_last"])
    (gain,) = (
        found
        for found in compare(scores, "standard")
        if (found.metric, found.stage, found.column) == ("dice", "Unet", SHIFTED)
    )
    assert (round(gain.mean, 3), gain.patients) == (0.035, 24)
    assert gain.low is not None
    assert gain.high is not None
    quoted = f"| **+{100 * gain.mean:.1f}** | +{100 * gain.low:.1f} to +{100 * gain.high:.1f} |"
    assert quoted in (EXAMPLES.parent / "docs" / "explanation" / "cardiac-example.md").read_text()
