"""Keeping large blocks: effect on page faults, and doing nothing where there is no glibc."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys

import pytest

from latentaug.training import allocator
from latentaug.training.allocator import tune_allocator

ON_GLIBC = platform.libc_ver()[0] == "glibc"

# A fresh process: the setting can't be taken back.
COUNT_FAULTS = """
import json, logging, resource, sys
import torch
from latentaug.training.allocator import tune_allocator
logging.basicConfig(level=logging.INFO, stream=sys.stderr)

def faults():
    counts = []
    for _ in range(16):
        activations = [torch.empty(7 * 2**20).fill_(1.0) for _ in range(3)]
        del activations
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[-1] - counts[7]

print(json.dumps({"before": faults(), "tuned": [tune_allocator(), tune_allocator()], "after": faults()}))
"""


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    tune_allocator.cache_clear()
    monkeypatch.setattr(allocator, "_taken", [])
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)


@pytest.mark.skipif(not ON_GLIBC, reason="mallopt belongs to glibc")
def test_large_blocks_are_kept_and_the_change_is_logged_once() -> None:
    untouched = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    # glibc's first threshold, and no other: by itself glibc raises it now and then, by what was freed before.
    untouched["MALLOC_MMAP_THRESHOLD_"] = str(128 * 1024)
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS], env=untouched, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["tuned"] == [True, True]
    # Eight times three tensors of 28 MiB, in pages of 2 MiB at most: importing changed nothing.
    assert result["before"] >= 8 * 3 * 28 // 2
    assert result["after"] < result["before"] / 4  # some, while holes of the right size are still to come
    assert done.stderr.count("malloc") == 1


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("no library needs to be opened"))
    assert tune_allocator() is False


def test_a_linux_without_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert tune_allocator() is False


@pytest.mark.parametrize(("answers", "expected"), [([1, 1], True), ([0, 1], False), ([1, 0], False)])
def test_it_says_whether_malloc_took_both_settings(
    monkeypatch: pytest.MonkeyPatch, answers: list[int], expected: bool
) -> None:
    replies = iter(answers)
    asked = []

    def mallopt(parameter: int, value: int) -> int:
        asked.append((parameter, value))
        return next(replies)

    monkeypatch.setattr(allocator, "_glibc_mallopt", lambda: mallopt)
    assert tune_allocator(2**25) is expected
    assert asked == [(-3, 2**25), (-1, 2**31 - 1)]  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h


@pytest.mark.parametrize("order", [[2**30, 2**25, 2**30], [2**25, 2**30, 2**25]])
def test_no_call_lowers_what_an_earlier_one_has_set(monkeypatch: pytest.MonkeyPatch, order: list[int]) -> None:
    largest = 0

    def mallopt(parameter: int, value: int) -> int:
        nonlocal largest
        largest = value if parameter == -3 else largest
        return 1

    monkeypatch.setattr(allocator, "_glibc_mallopt", lambda: mallopt)
    for i, size in enumerate(order):
        assert tune_allocator(size)
        assert largest == max(order[: i + 1])


def test_what_malloc_refuses_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mallopt(parameter: int, value: int) -> int:
        asked.append((parameter, value))
        return int(parameter == -1 or value <= 2**25)  # as glibc before 2.35

    monkeypatch.setattr(allocator, "_glibc_mallopt", lambda: mallopt)
    assert not tune_allocator(2**30)
    assert tune_allocator()
    assert asked[2] == (-3, 2**25)


@pytest.mark.parametrize(("value", "expected"), [("1073741824", 2**30), ("131072", 2**25), ("much", 2**25)])
def test_the_environment_is_not_overruled_either(monkeypatch: pytest.MonkeyPatch, value: str, expected: int) -> None:
    asked = {}
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", value)
    monkeypatch.setattr(allocator, "_glibc_mallopt", lambda: lambda *pair: bool(asked.update([pair])) + 1)
    assert tune_allocator()
    assert asked[-3] == expected
