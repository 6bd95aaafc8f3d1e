"""Drawing batches: an epoch from where it was left, and with an eye on what asks to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from latentaug import ranks
from latentaug.training.checkpoint import Position
from latentaug.training.finite import NotFiniteError
from latentaug.training.interrupt import (
    HeldNews,
    Interrupted,
    Interruption,
    Terminated,
    deferred_interrupt,
    stop_workers,
)
from latentaug.training.random_streams import preserved_random_streams, random_state, restore_random_state

logger = logging.getLogger(__name__)


class Drawing:
    """Draws from loaders, and knows which ones are under way."""

    def __init__(self) -> None:
        self.news = HeldNews()
        self.interruption = Interruption(self.news)
        self._halfway = False
        self.under_way: list[tuple[Iterable[Any], Iterator[Any]]] = []

    def batches(self, loader: Iterable[Any], batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches of a loader; a signal that arrives while its workers are waited for takes effect at once.

        Not so where there are other ranks: all stop after the same step.
        """
        self.under_way.append((loader, batches))
        while True:
            with self.interruption.at_once(getattr(loader, "num_workers", 0) > 0 and not ranks.several()):
                try:
                    batch = next(batches)
                except StopIteration:
                    break
            yield batch
        self.under_way.pop()

    @contextmanager
    def wholly(self) -> Iterator[None]:
        """Mark a part of a fit that can't be gone on from if it fails halfway, such as an update."""
        self._halfway = True
        yield
        self._halfway = False

    @contextmanager
    def stoppable(self, keep: Callable[[], None], keep_failed: Callable[[], None]) -> Iterator[None]:
        """Let a fit that is asked to end do so after its step, and keep what it has come to.

        One that fails, in a loader or a callback for instance, is kept too, unless it fails halfway. Not so where there
        are other ranks: they would have to take part.

        Args:
            keep: What to do where it ends so, for too many batches that are not finite too: on all ranks alike.
            keep_failed: What to do where it fails.
        """
        with deferred_interrupt(self.news) as self.interruption:
            try:
                yield
            except BaseException as error:
                self.news.hold()
                safe = isinstance(error, Interrupted | Terminated | NotFiniteError)
                if safe or (not ranks.several() and self.interruption.explains(error)):
                    keep()
                    if self.interruption.signal is not None:
                        stop_workers(self.under_way)
                    self.interruption.check()  # which tells more than what a loader raised
                elif not (ranks.several() or self._halfway or self.interruption.signal is not None):
                    _keep_after(error, keep_failed)
                raise
            finally:
                self.interruption, self.under_way, self._halfway = Interruption(self.news), [], False


def _keep_after(error: BaseException, keep: Callable[[], None]) -> None:
    """Keep what a fit that failed has come to; that this fails, too, is no news."""
    try:
        keep()
    except Exception as other:
        logger.warning("What was trained before this %s could not be kept: %s", type(error).__name__, other)


def rest_of_epoch(loader: Iterable[Any], position: Position, device: torch.device) -> Iterator[Any]:
    """Iterate over the running epoch's batches, from where it was left.

    Raises:
        ValueError: The loader has fewer batches than were drawn already.
    """
    set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(position.epoch)
    if position.batches == 0:
        position.epoch_start = random_state(device, loader)
        return iter(loader)
    with preserved_random_streams(device, loader):
        restore_random_state(position.epoch_start, device, loader)
        batches = iter(loader)
        drawn = sum(1 for _ in islice(batches, position.batches))
    if drawn < position.batches:
        raise ValueError(
            f"fit needs the loader that this epoch was begun with, of which {position.batches} batches were used; "
            f"got one of {drawn}."
        )
    return batches
