"""Who is at work: the thread, and within it the asyncio task, that something was opened in."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

_WITHIN: ContextVar[tuple[Strand, ...]] = ContextVar("latentaug_strands", default=())


class Strand:
    """The thread, and the asyncio task if there is one, that something is open in.

    Tasks that a task starts while it is open belong to it, as what it waits for does. Once a task has ended, as a
    notebook's cell has, what it left open is anyone's in its thread.

    Example:
        >>> strand = Strand()
        >>> strand.is_elsewhere()
        False
        >>> strand.close()
    """

    def __init__(self) -> None:
        self._thread, self._task = threading.get_ident(), _task()
        if self._task is not None:
            _WITHIN.set((*_WITHIN.get(), self))

    def is_elsewhere(self) -> bool:
        """Tell whether what runs now is another thread's, or another task's while the task goes on."""
        if threading.get_ident() != self._thread:
            return True
        if self._task is None or self._task.done() or _task() is self._task:
            return False
        return self not in _WITHIN.get()

    def close(self) -> None:
        """Let tasks that are started from here on be none of its."""
        if self._task is not None:
            _WITHIN.set(tuple(one for one in _WITHIN.get() if one is not self))


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return None
