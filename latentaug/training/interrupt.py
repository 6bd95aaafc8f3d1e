"""Ctrl-C that waits for a safe moment."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, raised at a moment that work can be continued from."""


class Interruption:
    """Remembers that Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise `Interrupted` if Ctrl-C was pressed."""
        if self.requested:
            raise Interrupted


@contextmanager
def deferred_interrupt() -> Iterator[Interruption]:
    """Let the first Ctrl-C wait for the next `check`; a second one stops at once.

    Does nothing outside the main thread, or where Ctrl-C is already handled in another way than Python's own.
    """
    interruption = Interruption()
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interruption
        return

    def remember(signum: int, frame: object) -> None:
        interruption.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.warning("Stopping after this step; press Ctrl-C again to stop at once.")

    signal.signal(signal.SIGINT, remember)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
