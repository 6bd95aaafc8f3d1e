"""Trainings that are killed at random moments, and started again, end as those that nobody kills: bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from tests.campaigns.day import count, seed
from tests.campaigns.kills import Kill, Whole, moments, outcome, run, whole
from tests.support.belongings import alike


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole(tmp_path_factory.mktemp("straight"))


@pytest.mark.slow
def test_killed_trainings_end_as_those_that_nobody_kills(straight: Whole, tmp_path: Path) -> None:
    wanted, folders = count("kills", 10), 0
    kills = moments(Random(seed()), straight.lines)
    done: list[Kill] = []
    while len(done) < wanted:
        folder, folders = tmp_path / str(folders), folders + 1
        for kill in killed(folder, islice(kills, wanted - len(done))):
            done.append(kill)
        told = f"LATENTAUG_SEED={seed()} LATENTAUG_KILLS={wanted}, after {done}"
        assert alike(outcome(folder), straight.outcome), told
        assert [path.name for path in sorted(folder.iterdir())] == ["best.pt", "last.pt", "log.csv"], told
    print(f"LATENTAUG_SEED={seed()}: {len(done)} kills of {folders} trainings")


def killed(folder: Path, kills: Iterator[Kill]) -> Iterator[Kill]:
    """Train in a folder to the end; yield the kills that it was killed by on the way."""
    for kill in kills:
        if not run(folder, kill).killed:
            return
        yield kill
    run(folder)


@pytest.mark.slow
def test_a_training_that_differs_is_seen(straight: Whole, tmp_path: Path) -> None:
    """Started afresh instead of resumed, with other random numbers: the comparison is no formality."""
    (tmp_path / "other").mkdir()
    changed = {**straight.outcome, "history": straight.outcome["history"][:-1]}
    assert not alike(changed, straight.outcome)
    assert run(tmp_path / "other", Kill(5000, "lines")).killed
    assert not (tmp_path / "other" / "last.pt").exists()
