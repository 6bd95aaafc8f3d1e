"""Tell the C library's allocator to keep large blocks, so that the kernel needn't clear the same pages every step."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from functools import cache

logger = logging.getLogger(__name__)


# From glibc's malloc.h; part of its stable interface.
_M_TRIM_THRESHOLD = -1


_M_MMAP_THRESHOLD = -3


_LARGEST_INT = 2**31 - 1


_taken: list[int] = []
"""Sizes that malloc has taken in this process."""


@cache
def tune_allocator(largest: int = 32 * 2**20) -> bool:
    """Make glibc's malloc keep the memory of large tensors between steps.

    By default blocks above a threshold are mapped and unmapped anew, and free memory is given back at once, so that the
    activations of a training step on the CPU pay for fresh pages each time. This raises the two thresholds of `mallopt`
    for the whole process, which then holds on to the most memory it ever needed for such blocks; no number changes.
    Without glibc nothing happens at all. No call lowers what an earlier one, or `MALLOC_MMAP_THRESHOLD_` in the
    environment, has set. Importing the library never calls it, `CooperativeTrainer.fit` does when it trains on a CPU.

    Args:
        largest: Bytes of the largest block that is kept. The default is the most that every glibc takes. With 2**30,
            from glibc 2.35 on, a step with larger activations, as in 3-D, takes less time and more memory: aligned
            blocks fit badly into the holes that others left. See `docs/explanation/costs.md`.

    Returns:
        Whether the allocator took the setting.

    Example:
        >>> tune_allocator() in (True, False)
        True
    """
    mallopt = _glibc_mallopt()
    if mallopt is None:
        return False
    largest = max(largest, *_taken, _from_environment())
    raised = mallopt(_M_MMAP_THRESHOLD, largest)
    if raised:
        _taken.append(largest)
    kept = mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
    tuned = bool(raised and kept)
    if tuned:
        logger.info(
            "Told malloc to keep large blocks: steps on the CPU get faster, and peak memory stays with the process."
        )
    return tuned


def _from_environment() -> int:
    value = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
    return int(value) if value.isdecimal() else 0


def _glibc_mallopt() -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return None
    mallopt = libc.mallopt
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return mallopt


@cache
def tell_of_allocator() -> None:
    """Say once what is no longer as it was in the whole process; a warning shows without any setting up of logs."""
    logger.warning(
        "Told malloc to keep large blocks: steps on the CPU get faster, and peak memory stays with the process. "
        "CooperativeTrainer(allocator=False) leaves it alone."
    )
