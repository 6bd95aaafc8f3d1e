"""Ctrl-C, and the signal that ends a job, wait for a moment that training can be continued from."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

_SAID = {
    signal.SIGINT: "Stopping after this step; press Ctrl-C again to stop at once.",
    signal.SIGTERM: "Asked to end (SIGTERM): stopping after this step.",
}

_PATIENCE = 0.5
"""Seconds in which a signal that a loader's workers died of reaches this process, too."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, raised at a moment that work can be continued from."""


class Terminated(SystemExit):
    """SIGTERM, raised at a moment that work can be continued from; the process exits with 143, as without us."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interruption:
    """Remembers the signal to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at_once = False

    def check(self) -> None:
        """Raise `Interrupted` if Ctrl-C was pressed, `Terminated` at SIGTERM."""
        if self.signal == signal.SIGTERM:
            raise Terminated
        if self.signal is not None:
            raise Interrupted

    def follow(self, signum: int) -> None:
        """Stop as `check` does, for a signal that ranks have agreed on; 0 for none, whatever came here meanwhile."""
        if signum:
            if self.signal is None:
                logger.warning("Another rank was asked to end: stopping after this step.")
                self.signal = signum
            self.check()

    @contextmanager
    def at_once(self, allowed: bool) -> Iterator[None]:
        """Let a signal take effect at once, where nothing is under way that could not be continued."""
        self._at_once = allowed
        try:
            yield
        finally:
            self._at_once = False

    def remember(self, signum: int) -> None:
        """Take note of a signal."""
        self.signal = signum
        logger.warning(_SAID[signal.Signals(signum)])
        if self._at_once:
            self.check()

    def explains(self, error: BaseException) -> bool:
        """Tell whether a loader failed because its workers got the signal, as all processes of a terminal or job do."""
        lost = isinstance(error, EOFError | ConnectionError) or (
            isinstance(error, RuntimeError) and any(name in str(error) for name in ("DataLoader worker", "Pin memory"))
        )
        deadline = time.monotonic() + (_PATIENCE if lost else 0)
        while lost and self.signal is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return lost and self.signal is not None


@contextmanager
def deferred_interrupt() -> Iterator[Interruption]:
    """Let the first Ctrl-C, or SIGTERM, wait for the next `check`; a second one stops at once.

    Does nothing outside the main thread, nor for a signal that is already handled in another way than Python's own.
    """
    interruption = Interruption()
    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = [signum for signum, handler in usual.items() if signal.getsignal(signum) is handler]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    owner = os.getpid()

    def handle(signum: int, frame: object) -> None:
        usually = usual[signal.Signals(signum)]
        signal.signal(signum, usually)
        if os.getpid() == owner:
            interruption.remember(signum)
        elif signum == signal.SIGTERM:  # a process that was forked meanwhile, such as a worker, ends as it would have
            os.kill(os.getpid(), signum)

    for signum in ours:
        signal.signal(signum, handle)
    try:
        yield interruption
    finally:
        for signum in ours:
            signal.signal(signum, usual[signum])


class WorkerNews:
    """News of a loader's dead workers, which torch raises wherever the program is: heard where a batch is drawn only.

    Elsewhere, as in an update or while a checkpoint is written, they wait.
    """

    def __init__(self) -> None:
        self._raises: Callable[[int, Any], Any] | None = None
        self._deferring = self._listening = self._arrived = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Let news that have come, or come now, raise what torch makes of them."""
        self._take_over()
        self._listening = True
        try:
            if self._arrived:
                self._tell()
            yield
        finally:
            self._listening = False
            self._take_over()  # as torch begins to raise with the first loader that has workers

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold news back but for where they are heard, and forget what has come then: a loader tells it again."""
        self._deferring = True
        self._take_over()
        try:
            yield
        finally:
            self._deferring = False
            if self._raises is not None and signal.getsignal(signal.SIGCHLD) == self._hear:
                signal.signal(signal.SIGCHLD, self._raises)

    def _take_over(self) -> None:
        if not self._deferring or os.name != "posix" or threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and getattr(handler, "__module__", "").startswith("torch.utils.data"):
            self._raises = handler
            signal.signal(signal.SIGCHLD, self._hear)

    def _hear(self, signum: int, frame: object) -> None:
        self._arrived = True
        if self._listening:
            self._tell()

    def _tell(self) -> None:
        self._arrived = self._listening = False  # one that is raised is dealt with undisturbed
        if self._raises is not None:
            self._raises(signal.SIGCHLD, None)
        self._listening = True


def stop_workers(drawing: Iterable[tuple[object, object]]) -> None:
    """Stop the workers of loaders that are drawn from, so that their end is no news later on.

    Args:
        drawing: Loaders and iterators over them; those of a `DataLoader` have the methods that it stops them with.
    """
    for loader, batches in drawing:
        stop = getattr(batches, "_shutdown_workers", None)
        if callable(stop):
            stop()
        if getattr(loader, "_iterator", None) is not None:  # whose workers outlive an epoch, or were to
            setattr(loader, "_iterator", None)  # noqa: B010 - no attribute of what we know
