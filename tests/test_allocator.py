"""Keeping large blocks: effect on page faults, and doing nothing where there is no glibc."""

import ctypes
import json
import os
import platform
import subprocess
import sys

import pytest

from latentaug import allocator
from latentaug.allocator import tune_allocator

ON_GLIBC = platform.libc_ver()[0] == "glibc"

# A fresh process: the setting can't be taken back.
COUNT_FAULTS = """
import json, logging, resource, sys
import torch
from latentaug.allocator import tune_allocator
logging.basicConfig(level=logging.INFO, stream=sys.stderr)

def faults():
    counts = []
    for _ in range(16):
        torch.empty(2**23).fill_(1.0)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[-1] - counts[7]

print(json.dumps({"before": faults(), "tuned": [tune_allocator(), tune_allocator()], "after": faults()}))
"""


@pytest.fixture(autouse=True)
def _forget() -> None:
    tune_allocator.cache_clear()


@pytest.mark.skipif(not ON_GLIBC, reason="mallopt belongs to glibc")
def test_large_blocks_are_kept_and_the_change_is_logged_once():
    untouched = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS], env=untouched, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["tuned"] == [True, True]
    assert (
        result["before"] >= 8 * 32 // 2
    )  # eight tensors of 32 MiB, in pages of 2 MiB at most: importing changed nothing
    assert result["after"] < result["before"] / 4  # some, while holes of the right size are still to come
    assert done.stderr.count("malloc") == 1


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("no library needs to be opened"))
    assert tune_allocator() is False


def test_a_linux_without_glibc_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert tune_allocator() is False


@pytest.mark.parametrize(
    ("answers", "expected"), [([1, 1], True), ([0, 1, 1], True), ([0, 0, 1], False), ([1, 0], False)]
)
def test_it_says_whether_malloc_took_both_settings(monkeypatch, answers, expected):
    replies = iter(answers)
    asked = []

    def mallopt(parameter: int, value: int) -> int:
        asked.append(parameter)
        return next(replies)

    monkeypatch.setattr(allocator, "_glibc_mallopt", lambda: mallopt)
    assert tune_allocator() is expected
    assert len(asked) == len(answers)  # an older glibc is asked again with the most it takes
