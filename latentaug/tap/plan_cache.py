"""What all taps of one model share: the plans already made, and which taps are open."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from latentaug.discovery.suggest import Suggestion
from latentaug.tap.capture import Plan
from latentaug.tap.plan import without_skipping
from latentaug.tracing.fingerprint import Verdict
from latentaug.tracing.location import Location, Spot

if TYPE_CHECKING:
    from latentaug.tap.latent_tap import LatentTap


class Turn:
    """A lock that the thread which holds it may take again, and that any thread may give back.

    Generators that hold a tap open may be closed by another thread than the one that ran them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._owner: int | None = None
        self._count = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for one's turn, and hold it within the context."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._owner in (None, me))
            self._owner, self._count = me, self._count + 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                if not self._count:
                    self._owner = None
                    self._changed.notify_all()


class PlanCache:
    """What all taps of one model share: a lock, the order of the open ones, and the plans already made."""

    def __init__(self) -> None:
        self.lock = Turn()
        self.open: list[weakref.ref[LatentTap]] = []
        self.busy = False  # a pass of our own is running: no tap takes it for the user's
        self.spots: dict[Any, dict[Spot, tuple[int, ...]]] = {}  # with the shape of the code at each
        self.found: dict[Any, tuple[Location, ...]] = {}  # where no layer was named
        self.suggested: dict[tuple[str, str], Suggestion] = {}  # by a transform's class and place
        self.plans: dict[Any, Plan] = {}
        self.distrusted: set[Any] = set()
        self.moved: dict[Any, set[str]] = {}  # what passes have moved that plans did not name
        self.verdicts: list[Verdict] = []  # on replays of taps that were left before an accelerator came to them

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Say that passes within the context are the library's own."""
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before

    def renew(self, model: nn.Module, key: Any, moved: set[str]) -> None:
        """Have a plan made anew that did not name all that a pass has moved.

        What moves again, though the other plan does not name it either, moves now and then: it is named from then on,
        so that replays start from where it was, and nothing is skipped.
        """
        known = self.moved.get(key)
        if known is None:
            del self.plans[key]
        elif again := known & moved:
            plan = self.plans[key]
            if plan.fast:
                plan = without_skipping(model, plan, "it does not move the same state in every pass")
            self.plans[key] = replace(plan, moving=plan.moving | again)
        self.moved[key] = moved | (known or set())

    def distrust(self, model: nn.Module, key: Any) -> None:
        """Drop a plan that did not fit a pass, so that the next makes another; if that fails too, skip nothing more."""
        plan = self.plans.pop(key)
        if key in self.distrusted:
            self.plans[key] = without_skipping(model, plan, "it does not call the same modules in every pass")
        self.distrusted.add(key)


_SHARED: weakref.WeakKeyDictionary[nn.Module, PlanCache] = weakref.WeakKeyDictionary()


_REGISTRY = threading.RLock()  # which Ctrl-C at the end of a `with` block leaves usable


def cache_of(model: nn.Module) -> PlanCache:
    """Return what the taps of a model share."""
    if (found := _SHARED.get(model)) is not None:
        return found
    with _REGISTRY:
        return _SHARED.setdefault(model, PlanCache())


def moving_in(model: nn.Module) -> set[str]:
    """Name what passes of a model are known to move: buffers, frozen weights, and what its modules keep beside."""
    return set().union(*(plan.moving for plan in cache_of(model).plans.values()))
