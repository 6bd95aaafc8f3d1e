"""Ranks draw, step and stop together. `tests/distributed/test_together.py` has two processes do it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

from latentaug import ranks
from latentaug.training.agreement import agreed_to_stop, drawn_together, scored_together
from latentaug.training.finite import FiniteGuard, NotFiniteError
from latentaug.training.interrupt import Interrupted, Interruption, Terminated

NOTHING = "^$"  # that Ctrl-C says


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, ...]]]:
    """Stand for a second rank, by what it says in its exchanges, one after the other."""
    says: dict[str, list[tuple[int, ...]]] = {}

    def largest(what: str, *numbers: int) -> list[int]:
        theirs = says[what].pop(0) if says.get(what) else [-(10**6)] * len(numbers)
        return [max(pair) for pair in zip(numbers, theirs, strict=True)]

    monkeypatch.setattr(ranks, "several", lambda: True)
    monkeypatch.setattr(ranks, "largest", largest)
    return says


def test_all_stop_for_the_reason_that_one_has(other: dict[str, list[tuple[int, ...]]]) -> None:
    reasons = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (signal.SIGINT, 0, 0), (signal.SIGTERM, 0, 0)]
    other["the end of a step"] = [tuple(map(int, reason)) for reason in reasons]
    guard = FiniteGuard(max_skipped=3)
    assert [agreed_to_stop(False, Interruption(), guard) for _ in range(2)] == [False, True]
    with pytest.raises(NotFiniteError, match="3 batches in a row were not finite"):
        agreed_to_stop(False, Interruption(), guard)
    with pytest.raises(Interrupted, match=NOTHING):
        agreed_to_stop(False, Interruption(), guard)
    with pytest.raises(Terminated, match="143"):
        agreed_to_stop(False, Interruption(), guard)


def test_groups_are_of_the_smallest_size_there_is(
    other: dict[str, list[tuple[int, ...]]], caplog: pytest.LogCaptureFixture
) -> None:
    other["batches of a step"] = [(-2, 2, 0, 0), (-1, 1, 0, 0), (0, 0, 0, 0)]
    drawn = drawn_together(iter([[1, 2], [3, 4], [5, 6]]), Interruption())
    with caplog.at_level(logging.WARNING):
        assert list(drawn) == [[1, 2], [3]]
    assert [record.message[:50] for record in caplog.records] == [
        "The epoch ends with the rank that has the fewest b"
    ] * 2


def test_a_rank_without_batches_takes_part_until_no_rank_has_any(other: dict[str, list[tuple[int, ...]]]) -> None:
    other["batches to score"] = [(-1, 1, 0, 0)] * 3 + [(0, 0, 0, 0)]
    assert list(scored_together(iter([1, 2]), Interruption())) == [1, 2, None]


def test_what_fails_while_it_draws_is_told_to_the_others(other: dict[str, list[tuple[int, ...]]]) -> None:
    def failing() -> Iterator[list[int]]:
        raise OSError("a disk is gone")
        yield []

    with pytest.raises(OSError, match="a disk is gone"):
        next(drawn_together(failing(), Interruption()))
    other["batches of a step"] = [(0, 0, 2, 0)]
    with pytest.raises(ranks.RanksDifferError, match="Rank 1 failed while it drew batches of a step"):
        next(drawn_together(iter([[1]]), Interruption()))
    other["batches of a step"] = [(0, 0, 0, int(signal.SIGINT))]
    with pytest.raises(Interrupted, match=NOTHING):
        next(drawn_together(iter([[1]]), Interruption()))


def test_a_signal_waits_for_the_end_of_the_step(other: dict[str, list[tuple[int, ...]]]) -> None:
    interruption = Interruption()
    interruption.remember(signal.SIGINT)
    assert next(drawn_together(iter([[1]]), interruption)) == [1]  # or this rank would leave alone
    with pytest.raises(Interrupted, match=NOTHING):
        agreed_to_stop(False, interruption, FiniteGuard(max_skipped=3))
