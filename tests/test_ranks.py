"""What ranks tell each other. `tests/distributed/test_together.py` has two processes do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed

from latentaug import ranks


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch, process_group: None) -> Callable[[str, list[int]], None]:
    """Stand for a second rank, which says what it is told to."""
    said: list[torch.Tensor] = []

    def all_gather(words: list[torch.Tensor], word: torch.Tensor, group: Any) -> None:
        words[0].copy_(word)
        words[1].copy_(said[0])

    def says(what: str, numbers: list[int]) -> None:
        padded = torch.tensor([*numbers, *[0] * (4 - len(numbers))])
        said[:] = [torch.cat([torch.tensor([*what.encode().ljust(32)], dtype=torch.uint8), padded.view(torch.uint8)])]

    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather", all_gather)
    return says


def test_a_process_alone_agrees_with_itself(process_group: None) -> None:
    assert (ranks.rank(), ranks.count(), ranks.several()) == (0, 1, False)
    weight = torch.ones(2)
    ranks.take_from_first("weights", [weight])
    assert torch.equal(weight, torch.ones(2))
    with pytest.raises(OSError, match="no room"), ranks.failing_together("a file"):
        raise OSError("no room")


def test_the_largest_of_each_number_counts(other: Callable[[str, list[int]], None]) -> None:
    other("sizes", [-2, 2**40])
    assert ranks.largest("sizes", -3, 7) == [-2, 2**40]


def test_ranks_at_different_exchanges_are_told_so(other: Callable[[str, list[int]], None]) -> None:
    other("a batch", [1])
    for call in (lambda: ranks.gathered("a file", 1), lambda: ranks.take_from_first("a file", [])):
        with pytest.raises(ranks.RanksDifferError, match="order; rank 0 to 'a file', rank 1 to 'a batch'"):
            call()
    other("flags", [3])
    with pytest.raises(ranks.RanksDifferError, match=r"as many of 'flags'; got \[2, 3\]"):
        ranks.anywhere("flags", [True, False])


def test_a_failure_of_another_rank_is_one_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "gathered", lambda what, value: [value, "OSError: no room"])
    failed = pytest.raises(ranks.RanksDifferError, match=r"Rank 1 failed \(a file\): OSError: no room")
    with failed, ranks.failing_together("a file"):
        pass


def test_names_that_do_not_fit_are_refused(other: Callable[[str, list[int]], None]) -> None:
    with pytest.raises(ValueError, match="a name of 32 bytes and 4 numbers at most"):
        ranks.largest("a name that is much longer than others", 1)


def test_the_group_for_tensors_on_the_cpu_is_made_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, process_group: None
) -> None:
    assert ranks._on_cpu() is distributed.group.WORLD
    made: list[str] = []
    monkeypatch.setattr(ranks, "_group", None)
    monkeypatch.setattr(distributed, "get_backend_config", lambda: "cuda:nccl")
    monkeypatch.setattr(distributed, "new_group", lambda backend: made.append(backend) or "ours")
    assert [ranks._on_cpu(), ranks._on_cpu()] == ["ours", "ours"]
    assert made == ["gloo"]
