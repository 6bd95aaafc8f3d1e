"""Each rank goes on with what it had, and other numbers of ranks with what can be made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentaug import ranks
from latentaug.training.random_streams import random_state
from latentaug.training.rank_states import as_of_this_rank, parts_of_ranks, tell_of_ranks

CPU = torch.device("cpu")


def part(number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    random = {**random_state(CPU, ()), "cpu": generator.get_state()}
    sums = {"loss": torch.tensor(float(number + 1)), f"only {number}": torch.ones(())}
    return {"generator": generator.get_state(), "random": random, "sums": sums, "counted": 2, "epoch_start": random}


def state(count: int) -> dict[str, Any]:
    parts = [part(number) for number in range(count)]
    first = {key: parts[0][key] for key in ("generator", "random")}
    position = {"epoch": 1, "batches": 2} | {key: parts[0][key] for key in ("sums", "counted", "epoch_start")}
    return {"model": {}, "position": position, "ranks": parts if count > 1 else [], **first}


def at(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setattr(ranks, "count", lambda: count)


@pytest.mark.parametrize("rank", range(3))
def test_as_many_ranks_have_what_they_had(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    at(monkeypatch, rank, 3)
    own, expected = as_of_this_rank(state(3), CPU), part(rank)
    assert torch.equal(own["generator"], expected["generator"])
    assert torch.equal(own["random"]["cpu"], expected["random"]["cpu"])
    assert own["position"]["sums"] == expected["sums"]
    assert own["position"]["counted"] == 2
    assert not own["position"].get("elsewhere")


@pytest.mark.parametrize(("then", "now"), [(3, 1), (1, 3), (2, 5), (4, 2)])
def test_other_numbers_of_ranks_have_streams_of_their_own_and_all_losses(
    monkeypatch: pytest.MonkeyPatch, then: int, now: int
) -> None:
    drawn, total, counted = [], 0.0, 0
    for rank in range(now):
        at(monkeypatch, rank, now)
        own = as_of_this_rank(state(then), CPU)
        again = as_of_this_rank(state(then), CPU)
        assert torch.equal(own["random"]["cpu"], again["random"]["cpu"])  # by what is in the file alone
        if rank < then:
            assert torch.equal(own["generator"], part(rank)["generator"])
        drawn += [tuple(own["generator"].tolist()), tuple(own["random"]["cpu"].tolist())]
        total += float(own["position"]["sums"].get("loss", 0))
        counted += own["position"]["counted"]
        assert own["position"]["elsewhere"]
    assert len({*drawn[::2]}) == len({*drawn[1::2]}) == now
    assert total == sum(range(1, then + 1))
    assert counted == 2 * then


def test_a_file_without_losses_that_were_counted_counts_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    old = state(1)
    del old["position"]["counted"]
    at(monkeypatch, 0, 2)
    assert as_of_this_rank(old, CPU)["position"]["counted"] == 2
    at(monkeypatch, 0, 1)
    assert "counted" not in as_of_this_rank(old, CPU)["position"]


def test_one_rank_has_no_parts() -> None:
    assert parts_of_ranks(state(1)) == []


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        (2, 1, "written by 2 ranks, and 1 goes on from it: the random streams of rank 1 end here"),
        (4, 2, "written by 4 ranks, and 2 go on from it: the random streams of ranks 2 to 3 end here"),
        (1, 2, "written by 1 rank, and 2 go on from it: rank 1 begins with random streams made of those of the file"),
        (1, 3, "written by 1 rank, and 3 go on from it: ranks 1 to 2 begin with random streams made of"),
        (2, 2, ""),
    ],
)
def test_what_becomes_of_the_streams_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, then: int, now: int, message: str
) -> None:
    at(monkeypatch, 0, now)
    tell_of_ranks(Path("last.pt"), state(then))
    assert message in caplog.text if message else not caplog.text
