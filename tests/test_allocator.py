"""Keeping large blocks: effect on page faults, and doing nothing where there is no glibc."""

import ctypes
import json
import platform
import subprocess
import sys

import pytest

from latentaug import allocator
from latentaug.allocator import tune_allocator

ON_GLIBC = platform.libc_ver()[0] == "glibc"

# A fresh process each time: the setting can't be taken back.
COUNT_FAULTS = """
import json, logging, resource, sys
import torch
from latentaug.allocator import tune_allocator
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
tuned = [tune_allocator() for _ in range(2)] if sys.argv[1] == "tuned" else []
faults = []
for _ in range(16):
    torch.empty(2**23).fill_(1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(json.dumps({"tuned": tuned, "faults": faults[-1] - faults[7]}))
"""


@pytest.fixture(autouse=True)
def _forget() -> None:
    tune_allocator.cache_clear()


def count_faults(setting: str) -> tuple[dict[str, object], str]:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, setting], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


@pytest.mark.skipif(not ON_GLIBC, reason="mallopt belongs to glibc")
def test_large_blocks_are_kept_and_the_change_is_logged_once():
    untouched, silence = count_faults("untouched")
    tuned, log = count_faults("tuned")
    assert untouched["faults"] >= 8 * 32 // 2  # eight tensors of 32 MiB, in pages of 2 MiB at most
    assert tuned["tuned"] == [True, True]
    assert tuned["faults"] < untouched["faults"] / 4  # some, while holes of the right size are still to come
    assert log.count("malloc") == 1
    assert "malloc" not in silence  # importing alone changes nothing


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
