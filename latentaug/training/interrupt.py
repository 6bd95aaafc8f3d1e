"""Ctrl-C, and the signal that ends a job, wait for a moment that training can be continued from."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
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


class HeldNews:
    """News of a loader's dead workers, which raise wherever the program is, held back for as long as need be."""

    def __init__(self) -> None:
        self._handler: Callable[[int, Any], Any] | None = None
        self._holding = self._arrived = False

    def hold(self) -> None:
        """Hold them back from now on. Until then one may raise at any moment, here too."""
        number = getattr(signal, "SIGCHLD", None)
        while not self._holding and number is not None and threading.current_thread() is threading.main_thread():
            try:
                handler = signal.getsignal(number)
                if not callable(handler):
                    return
                signal.signal(number, self._note)  # which hears of what has come before it takes over
                self._handler, self._holding = handler, True
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise

    def release(self, *, forget: bool = True) -> None:
        """Hand on what has come meanwhile, and what is to come.

        Args:
            forget: Whether to drop what it raises.
        """
        if not self._holding or self._handler is None:
            return
        self._holding, arrived, self._arrived = False, self._arrived, False
        if signal.getsignal(signal.SIGCHLD) == self._note:
            signal.signal(signal.SIGCHLD, self._handler)
        if arrived:
            with suppress(RuntimeError) if forget else nullcontext():
                self._handler(signal.SIGCHLD, None)

    def _note(self, signum: int, frame: object) -> None:
        if self._holding or self._handler is None:
            self._arrived = True
        else:  # someone who has kept it for a while has put it back
            self._handler(signum, frame)


class Interruption:
    """Remembers the signal to stop.

    Args:
        news: Held back from the moment on at which a signal takes effect: it is what workers die of then.
    """

    def __init__(self, news: HeldNews | None = None) -> None:
        self.signal: int | None = None
        self._news = HeldNews() if news is None else news
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
            self._news.hold()
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
def deferred_interrupt(news: HeldNews | None = None) -> Iterator[Interruption]:
    """Let the first Ctrl-C, or SIGTERM, wait for the next `check`; a second one stops at once.

    Does nothing outside the main thread, nor for a signal that is already handled in another way than Python's own.

    Args:
        news: As in `Interruption`; to be released by whoever passes it.
    """
    interruption = Interruption(news)
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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let news of a loader's dead workers wait until the block is through."""
    news, through = HeldNews(), False
    news.hold()
    try:
        yield
        through = True
    finally:
        news.release(forget=not through)


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
