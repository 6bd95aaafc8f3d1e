"""Steps that take turns in one process, and processes of their own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from benchmarks.interleaved import Taken, apart, spread, take_turns_in_process

CPU = torch.device("cpu")


def test_every_step_runs_once_in_each_round() -> None:
    ran: list[str] = []
    taken = take_turns_in_process({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, CPU, 3, warmup=1)
    assert ran[:8] == ["a", "b"] * 4
    assert [len(one.cpu) for one in taken.values()] == [3, 3]
    assert [len(one.wall) for one in taken.values()] == [3, 3]


def test_the_processors_time_is_not_the_clocks() -> None:
    taken = take_turns_in_process({"asleep": lambda: time.sleep(0.05)}, CPU, 1, warmup=0)["asleep"]
    assert taken.wall[0] >= 0.05
    assert taken.cpu[0] < taken.wall[0]
    assert taken.seconds(CPU) == taken.cpu
    assert taken.seconds(torch.device("cuda")) == taken.wall


def test_peaks_are_what_a_step_allocates_at_a_time() -> None:
    def large() -> None:
        torch.zeros(1000, 1000) + 1

    def small() -> None:
        torch.zeros(100, 1000) + 1

    taken = take_turns_in_process({"large": large, "small": small}, CPU, 1, warmup=0)
    assert taken["large"].peak == pytest.approx(8e6, rel=0.01)
    assert taken["small"].peak == pytest.approx(8e5, rel=0.01)


def test_costs_are_quotients_of_each_round() -> None:
    plain, other = Taken([1.0, 1.0], [1.0, 4.0]), Taken([1.0, 1.0], [2.0, 12.0])
    assert other.over(plain, CPU) == [2.0, 3.0]
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx((4 - 2) / 2 / 3)


def environment() -> dict[str, str]:
    return dict(os.environ)


def test_malloc_is_as_it_comes_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123456789")
    there = apart(environment, threads=1, kept=0)
    assert not [name for name in there if name.startswith("MALLOC_")]
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "123456789"


def test_what_takes_too_long_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="not done after 1 s"):
        apart(time.sleep, 3600, threads=1, seconds=1.0)
    assert time.monotonic() - start < 600


def test_what_goes_wrong_there_is_told_here() -> None:
    with pytest.raises(RuntimeError, match=r"FileNotFoundError: .*nowhere"):
        apart(Path.read_text, Path("nowhere"), threads=1)
    with pytest.raises(RuntimeError, match="process ended"):
        apart(os._exit, 3, threads=1)
