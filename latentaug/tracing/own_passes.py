"""Passes of a model that the library runs for its own purposes: taps that are open meanwhile take no notice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn


class _Depths(threading.local):
    def __init__(self) -> None:
        self.of: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


_DEPTHS = _Depths()


def depth_of(model: nn.Module) -> int:
    """Tell within how many of the library's own passes of a model this thread is.

    Example:
        >>> model = nn.ReLU()
        >>> with own_passes(model):
        ...     depth_of(model)
        1
    """
    return _DEPTHS.of.get(model, 0)


@contextmanager
def own_passes(model: nn.Module) -> Iterator[None]:
    """Say that passes of a model within the context, in this thread, are the library's own."""
    before = depth_of(model)
    _DEPTHS.of[model] = before + 1
    try:
        yield
    finally:
        _DEPTHS.of[model] = before
