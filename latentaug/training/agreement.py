"""What ranks agree on between the steps of a fit, on the CPU, so that all draw, step and stop together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TypeVar

from latentaug import ranks
from latentaug.training.finite import FiniteGuard
from latentaug.training.interrupt import Interruption

logger = logging.getLogger(__name__)

T = TypeVar("T")


def agreed_to_stop(stopping: bool, interruption: Interruption, guard: FiniteGuard) -> bool:
    """Let all ranks stop after the same step, for the reason that one of them has.

    Args:
        stopping: Whether this rank was asked to end the fit.
        interruption: Which knows of signals.
        guard: Which counts batches that are not finite. Where the device tells, word may have come to one rank only.

    Returns:
        Whether any rank was asked to.

    Raises:
        NotFiniteError: Too many batches were not finite.
        Interrupted: Ctrl-C was pressed on a rank.
        Terminated: A rank got SIGTERM.

    Example:
        >>> agreed_to_stop(False, Interruption(), FiniteGuard(max_skipped=10))
        False
    """
    own = (interruption.signal or 0, guard.has_enough, stopping)
    signal, enough, stop = ranks.largest("the end of a step", *map(int, own))
    if enough:
        guard.stop()
    interruption.follow(signal)
    return bool(stop)


def drawn_together(groups: Iterator[list[T]], interruption: Interruption) -> Iterator[list[T]]:
    """Yield groups of batches, as many on each rank and of the same sizes: the smallest ones.

    Args:
        groups: What this rank draws.
        interruption: Which knows of signals, also of those that a loader's workers died of.

    Raises:
        RanksDifferError: Another rank failed while it drew.
        Interrupted: A rank's loader died of Ctrl-C.
        Terminated: A rank's loader died of SIGTERM.
    """
    while True:
        group, least, _ = _drawn(groups, "batches of a step", interruption)
        if least < len(group):
            logger.warning("The epoch ends with the rank that has the fewest batches; those left here are not drawn.")
        if least == 0:
            return
        yield group[:least]


def scored_together(batches: Iterator[T], interruption: Interruption) -> Iterator[T | None]:
    """Yield batches until no rank has any; None where the others still have some.

    Args:
        batches: What this rank draws.
        interruption: As for `drawn_together`.

    Raises:
        RanksDifferError: Another rank failed while it drew.
        Interrupted: Ctrl-C was pressed on a rank.
        Terminated: A rank got SIGTERM.
    """
    one_by_one = ([batch] for batch in batches)
    while True:
        group, _, most = _drawn(one_by_one, "batches to score", interruption)
        if most == 0:
            return
        yield group[0] if group else None
        (signal,) = ranks.largest("a batch that was scored", interruption.signal or 0)
        interruption.follow(signal)


def _drawn(groups: Iterator[list[T]], what: str, interruption: Interruption) -> tuple[list[T], int, int]:
    """Draw a group, and tell the size of the smallest and of the largest of all ranks."""
    group, failed = list[T](), 0
    try:
        group = next(groups, [])
    except Exception as error:
        if ranks.several():
            failed = 0 if interruption.explains(error) else 1 + ranks.rank()
            ranks.largest(what, 0, 0, failed, interruption.signal or 0)
            if not failed:
                interruption.check()
        raise
    smallest, most, failed, signal = ranks.largest(what, -len(group), len(group), 0, 0)
    if failed:
        raise ranks.RanksDifferError(f"Rank {failed - 1} failed while it drew {what}; its own error says why.")
    interruption.follow(signal)
    return group, -smallest, most
