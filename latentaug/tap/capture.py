"""Capture a forward pass at some codes, and run what follows them again: the machinery behind `LatentTap`.

Call `t` the moment when the tapped module returns its code. A call that finished before `t` cannot depend on the code,
so a replay hands out what it returned; every other call is run again. That is exact when the only effect of a skipped
call is its return value, which `make_plan` establishes call by call and then proves on the model itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from latentaug.tap.replaying import NewCode, gradients_if, hand_out, replayed
from latentaug.tap.start import Left, Start
from latentaug.tap.whole_pass import WholePassChange
from latentaug.tracing.fingerprint import Fingerprint
from latentaug.tracing.intercept import is_compiled, overridden
from latentaug.tracing.location import Spot, device_of
from latentaug.tracing.random_state import RandomState
from latentaug.tracing.record import InputWatch
from latentaug.tracing.tree import Path, is_differentiable, item_at, map_tensors, tensors_in, version_of

Key: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Plan:
    """What a pass of one model must keep so that it can be replayed from its codes."""

    spots: tuple[Spot, ...]
    call: int
    totals: dict[str, int]  # how often each tapped module is called in a pass
    kept: frozenset[Key]  # calls whose results replays hand out
    late: frozenset[Key]  # those of them that come after the code, and do not depend on it
    cloned: frozenset[Key]  # calls whose results are changed in place later, so that a clone is taken at return
    clone_inputs: bool
    moving: frozenset[str]  # buffers, other than normalisation statistics, frozen weights and attributes that move
    interpreter: bool  # whether a pass draws from Python's or NumPy's random streams
    moves_weights: frozenset[str]  # weights that learn, and that a pass changes itself
    scratch: frozenset[str] = frozenset()  # attributes that a pass writes before it reads them, if it does
    saving: tuple[tuple[Key, str], ...] = ()  # how autograd saves what these calls compute: `saving_now`
    checkpointed: bool = False  # whether autograd saves any of what a pass computes in a packed way
    replayed: bool = True  # whether there will be replays
    fast: bool = True
    graphless: bool = False  # whether the backward pass of a replay would compute part of it from the old code

    def chosen(self, spot: Spot) -> Key:
        """Return the call of the tapped module that the code is taken from."""
        total = self.totals[spot.name]
        number = self.call + total if self.call < 0 else self.call
        if not 0 <= number < total:
            raise ValueError(f"LatentTap needs `call` within the {total} calls of {spot.name!r}; got {self.call}.")
        return spot.name, number

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the submodules whose calls a pass must see."""
        tapped = {spot.name for spot in self.spots}
        found = {}
        for name in {name for name, _ in self.kept} | tapped:
            for prefix, module in modules_down_to(model, name):
                # Compiled code around a tapped module would not see what stands in for it.
                if prefix == name or (name in tapped and is_compiled(module)):
                    found[prefix] = module
        return found


def modules_down_to(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules on the way down to a submodule, by their names."""
    prefix = ""
    for key in filter(None, name.split(".")):
        model = getattr(model, key)
        prefix = f"{prefix}.{key}" if prefix else key
        yield prefix, model


# Capturing --------------------------------------------------------------------------------------------------------
class Record:
    """What one call returned, and the state of the world at that moment."""

    def __init__(self, tree: Any, random: RandomState, inner: list[str], impure: bool, cloned: bool):
        self.tree = map_tensors(tree, lambda tensor: tensor)  # containers of our own: decoders pop from theirs
        self.versions = [(t, version_of(t)) for _, t in tensors_in(self.tree)]
        self.random = random
        self.inner = inner  # calls of watched modules made inside this one
        self.impure = impure  # it changed its inputs
        self.cloned = cloned
        self.grad = torch.is_grad_enabled()
        self.left: list[Left] = []  # what it has set on modules
        self.codes: dict[Path, tuple[Tensor, Tensor]] = {}  # what stands in the tree, and the live code
        self.cuts: list[tuple[Tensor, Tensor]] = []  # leaves that stand in the tree, and what the call returned

    def intact(self) -> bool:
        """Tell whether the recorded values are still what the call returned."""
        return all(version_of(tensor) == version for tensor, version in self.versions)

    def hand_out(self, *, detach: bool) -> Any:
        """Return the tree in a form that the running model may use, and change in place."""
        return map_tensors(self.tree, lambda t: hand_out(t, clone=self.cloned, detach=detach))


class Capture:
    """One forward pass: its inputs, its codes, and the results that replays hand out."""

    def __init__(
        self, model: nn.Module, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], *, cut: bool = False
    ):
        self.model = model
        self.plan = plan
        self.cut = cut  # whether what follows the codes gets leaves, whose gradients somebody takes further
        self.device = device_of(model, args, kwargs)
        self.random = RandomState.capture(self.device)
        self.grad = torch.is_grad_enabled()
        self.autocast = [_autocast_state(kind) for kind in {"cpu", self.device.type}]
        self.inputs = map_tensors((args, kwargs), torch.clone) if plan.clone_inputs else (args, kwargs)
        self.start = (
            Start(
                model,
                self.inputs,
                moving=plan.moving,
                weights=plan.moves_weights,
                scratch=plan.scratch,
                saving=dict(plan.saving),
            )
            if plan.replayed
            else None
        )
        self.counts: Counter[str] = Counter()
        self.calls: list[str] = []
        self.records: dict[Key, Record] = {}
        self.taps: dict[Key, Record] = {}
        self.order: list[Key] = []
        self.checkpointed = False  # whether autograd saves what it computes in another way than when it was planned
        self._skipping = 0

    def run(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the pass, `original` being the model's own forward."""
        with overridden(self.plan.modules(self.model), self._handle):
            if any(spot.name == "" for spot in self.plan.spots):
                output = self._handle("", original, args, kwargs)
            else:
                output = original(*args, **kwargs)
        self._settle()
        self.output = output
        return output

    def _handle(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = (name, self.counts[name])
        self.counts[name] += 1
        self.calls.append(name)
        keep = not self._skipping and key in self.plan.kept
        paths = [spot.path for spot in self.plan.spots if spot.name == name]
        if not keep and not paths:
            return original(*args, **kwargs)
        watch, before = InputWatch(args, kwargs), len(self.calls)
        self._skipping += keep
        try:
            output = original(*args, **kwargs)
        finally:
            self._skipping -= keep
        random = RandomState.capture(self.device, interpreter=self.plan.interpreter)
        inner, impure = self.calls[before:], watch.changed()
        clone = key in self.plan.cloned or any(t.is_inference() for _, t in tensors_in(output))
        entry = Record(map_tensors(output, torch.clone) if clone else output, random, inner, impure, clone)
        if self.start is not None:
            entry.left = self.start.left_by(name) if keep else []
            self.checkpointed |= self.start.saves_otherwise(key)
        if keep:
            self.records[key] = entry
        if paths:
            self.taps[key] = entry
            if self.cut and self.grad:
                self._cut(entry)
                output = entry.tree
            _see_that_they_are_plain(name, [item_at(entry.tree, path) for path in paths])
            entry.codes = {path: self._live(item_at(entry.tree, path)) for path in paths}
            live = {id(item_at(output, path)): code for path, (_, code) in entry.codes.items()}
            live |= {id(leaf): leaf for leaf, _ in entry.cuts}
            with gradients_if(self.grad):  # also where the model runs its encoder without them
                output = map_tensors(output, lambda t: live[id(t)].clone() if id(t) in live else t)
        self.order.append(key)
        return output

    def _live(self, returned: Tensor) -> tuple[Tensor, Tensor]:
        """Return what stands in the output with the code to derive by, which a frozen encoder does not give.

        It is what the consumers of that output get: what the module computes from the same tensor is not derived.
        """
        if not self.grad or not is_differentiable(returned) or (returned.requires_grad and returned.is_leaf):
            return returned, returned
        if returned.requires_grad:
            with gradients_if(True):
                return returned, returned.view_as(returned)
        with gradients_if(True):
            return returned, hand_out(returned, clone=False, detach=True).requires_grad_()

    def _cut(self, entry: Record) -> None:
        """Let leaves stand for all that the call returned, so that what follows is derived without what precedes."""

        def leaf(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            entry.cuts.append((tensor.detach().requires_grad_(), tensor))
            return entry.cuts[-1][0]

        entry.tree = map_tensors(entry.tree, leaf)
        entry.versions = [(t, version_of(t)) for _, t in tensors_in(entry.tree)]

    @property
    def cuts(self) -> list[tuple[Tensor, Tensor]]:
        """The leaves that stand for what the tapped calls returned, each with that."""
        return [pair for key in dict.fromkeys(self.chosen) for pair in self.taps[key].cuts]

    def _settle(self) -> None:
        """Check the finished pass against the plan, and let go of what no replay can ask for."""
        plan = self.plan
        for name, total in plan.totals.items():
            if self.counts[name] == 0:
                raise RuntimeError(
                    f"LatentTap: {name or 'the model'!r} was not called in this pass of the model. Pass a layer "
                    "that is called in every pass, in train mode too."
                )
            if self.counts[name] != total:
                self.plan = plan = replace(plan, totals={**plan.totals, name: self.counts[name]}, fast=False)
        self.chosen = [plan.chosen(spot) for spot in plan.spots]
        self.earliest = min(self.chosen, key=self.order.index)
        self.taps = {key: self.taps[key] for key in self.chosen}
        self.unplanned = set() if self.start is None else self.start.unplanned()
        self.fits = (
            plan.fast
            and not self.unplanned
            and not self.checkpointed
            and self.records.keys() == plan.kept
            and not any(entry.impure for entry in self.records.values())
            and (plan.interpreter or not self.random.interpreter_moved())
        )
        if not self.fits:
            self.records = {}
        recorded = [tensor for entry in self.records.values() for tensor, _ in entry.versions]
        self._print = Fingerprint(recorded, elsewhere=False)

    @property
    def codes(self) -> list[Tensor]:
        """The live codes, one for each spot."""
        return [self.taps[key].codes[spot.path][1] for key, spot in zip(self.chosen, self.plan.spots, strict=True)]

    def can_skip(self) -> bool:
        """Tell whether a fast replay of this pass would be exact."""
        return self.fits and all(entry.intact() for entry in self.records.values()) and not self._print.changed()

    def note_weights(self) -> None:
        """Take the weights of now for those of the pass, where passes change them."""
        if self.plan.moves_weights and self.start is not None:
            self.start.tensors.note()

    def replay(
        self,
        new: Sequence[NewCode],
        *,
        whole: WholePassChange | None = None,
        full: bool = False,
        detach: bool = False,
        update: bool = False,
    ) -> Any:
        """Run the model again from new codes, or with a change of the whole pass; see `LatentTap.replay`."""
        return replayed(self, new, whole=whole, full=full, detach=detach, update=update)


def _see_that_they_are_plain(name: str, codes: Sequence[Tensor]) -> None:
    """Refuse codes that cannot be computed with as others can.

    Raises:
        TypeError: One is nested or quantised.
    """
    for code in codes:
        if code.is_nested:
            raise TypeError(
                f"LatentTap needs a code of one shape; {name!r} returned a nested tensor, as nn.TransformerEncoder "
                "does with padding in eval mode and without gradients. Make it with enable_nested_tensor=False."
            )
        if code.is_quantized:
            raise TypeError(
                f"LatentTap needs a floating-point code; {name!r} returned a quantised tensor, {code.dtype}. Tap the "
                "model before it is converted, or a module that returns floating-point numbers."
            )


def _autocast_state(kind: str) -> tuple[str, torch.dtype, bool, bool]:
    return (
        kind,
        torch.get_autocast_dtype(kind),
        torch.is_autocast_enabled(kind),
        torch.is_autocast_cache_enabled(),
    )
