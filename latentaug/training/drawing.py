"""Drawing batches: an epoch from where it was left, and with an eye on what asks to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from latentaug import ranks
from latentaug.training.batches import digest_of
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

    def batches(self, loader: Iterable[Any], batches: Iterator[Any], position: Position | None = None) -> Iterator[Any]:
        """Yield batches of a loader; a signal that arrives while its workers are waited for takes effect at once.

        Not so where there are other ranks: all stop after the same step. The first of an epoch is noted in `position`.
        """
        first = position is not None and position.batches == 0
        self.under_way.append((loader, batches))
        while True:
            with self.interruption.at_once(getattr(loader, "num_workers", 0) > 0 and not ranks.several()):
                try:
                    batch = next(batches)
                except StopIteration:
                    break
            if position is not None and first:
                position.first_batch, first = digest_of(batch), False
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


def rest_of_epoch(
    loader: Iterable[Any], position: Position, device: torch.device, others: Sequence[object] = ()
) -> Iterator[Any]:
    """Iterate over the running epoch's batches, from where it was left.

    Args:
        loader: What yields them.
        position: Where the epoch is.
        device: Whose random stream counts beside the others.
        others: What else draws from streams of its own, such as the model.

    Raises:
        ValueError: The loader has fewer batches than were drawn already.
    """
    _tell_samplers(loader, position.epoch)
    if position.batches == 0:
        position.epoch_start = random_state(device, loader, *others)
        return iter(loader)
    with preserved_random_streams(device, loader, *others):
        restore_random_state(position.epoch_start, device, loader, *others)
        batches = iter(loader)
        drawn = 0
        for batch in islice(batches, position.batches):
            if drawn == 0:
                _see_that_it_is_the_same(batch, position)
            drawn += 1
    if drawn < position.batches:
        raise ValueError(
            f"fit needs the loader that this epoch was begun with, of which {position.batches} batches were used; "
            f"got one of {drawn}."
        )
    return batches


def _tell_samplers(loader: Iterable[Any], epoch: int) -> None:
    """Tell samplers that order each epoch by its number which one it is, those in a batch sampler too, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    for sampler in {id(one): one for one in samplers}.values():
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)


def _see_that_it_is_the_same(batch: Any, position: Position) -> None:
    """Say if the first batch of the running epoch is another one than it was."""
    if position.first_batch not in ("", digest_of(batch)):
        logger.warning(
            "The running epoch begins with another batch than when the checkpoint was written, so the fit does not go "
            "on as an uninterrupted one would. Pass the loader that it was begun with. If this is it, something in it "
            "has a random stream, or a count of its epochs, that is not found: draw from the global streams there."
        )
