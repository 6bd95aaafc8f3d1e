"""How far a long piece of work is, and how long it still takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Progress:
    """Shows progress and the time left on stderr: a bar on a terminal that goes when done, else a line now and then.

    Args:
        what: What is done.
        total: How many pieces there are to do.
        every: Seconds between two lines; work that is shorter shows none.
    """

    def __init__(self, what: str, total: int, *, every: float = 30.0) -> None:
        self.what, self.total, self.every, self.done = what, total, every, 0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        """Start the clock."""
        self._started = self._shown = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm(desc=self.what, total=self.total, leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items, each of them a piece that is done when the next one is asked for."""
        for item in items:
            yield item
            self.reach(self.done + 1)

    def reach(self, done: int) -> None:
        """Say how many pieces are done."""
        if self._bar is not None:
            self._bar.update(done - self.done)
        self.done, now = done, time.monotonic()
        if self._bar is None and done and now - self._shown >= self.every:
            self._shown = now
            left = tqdm.format_interval((now - self._started) / done * (self.total - done))
            print(f"{self.what}: {done} of {self.total}, {left} left", file=sys.stderr, flush=True)
