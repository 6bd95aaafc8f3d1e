"""Capture a forward pass at some codes, and run what follows them again: the machinery behind `LatentTap`.

Call `t` the moment when the tapped module returns its code. A call that finished before `t` cannot depend on the code,
so a replay hands out what it returned; every other call is run again. That is exact when the only effect of a skipped
call is its return value, which `make_plan` establishes call by call and then proves on the model itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from latentaug.tap.whole_pass import ChangedReads, WholePassChange
from latentaug.tracing.intercept import is_compiled, overridden
from latentaug.tracing.isolation import borrowed_buffers, constant_weights, frozen_norm_statistics, submodules
from latentaug.tracing.location import Spot, device_of
from latentaug.tracing.random_state import RandomState, preserved_random_state
from latentaug.tracing.record import InputWatch
from latentaug.tracing.tree import Path, is_differentiable, item_at, map_tensors, tensors_in, version_of

Key: TypeAlias = tuple[str, int]


NewCode: TypeAlias = Tensor | Callable[[Tensor], Tensor] | None


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
    buffers: tuple[str, ...]  # buffers, other than normalisation statistics, that a pass changes
    interpreter: bool  # whether a pass draws from Python's or NumPy's random streams
    moves_weights: bool  # whether a pass changes trainable weights
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
        self.codes: dict[Path, tuple[Tensor, Tensor]] = {}  # what stands in the tree, and the live code
        self.cuts: list[tuple[Tensor, Tensor]] = []  # leaves that stand in the tree, and what the call returned

    def intact(self) -> bool:
        """Tell whether the recorded values are still what the call returned."""
        return all(version_of(tensor) == version for tensor, version in self.versions)

    def hand_out(self, *, detach: bool) -> Any:
        """Return the tree in a form that the running model may use, and change in place."""
        return map_tensors(self.tree, lambda t: _hand_out(t, clone=self.cloned, detach=detach))


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
        self.buffers = {name: model.get_buffer(name).clone() for name in plan.buffers}
        self.inputs = map_tensors((args, kwargs), torch.clone) if plan.clone_inputs else (args, kwargs)
        self._inputs_watch = InputWatch(*self.inputs)
        self._weights = weight_versions(model)
        self.counts: Counter[str] = Counter()
        self.calls: list[str] = []
        self.records: dict[Key, Record] = {}
        self.taps: dict[Key, Record] = {}
        self.order: list[Key] = []
        self._skipping = 0

    def run(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the pass, `original` being the model's own forward."""
        with overridden(self.plan.modules(self.model), self._handle):
            if any(spot.name == "" for spot in self.plan.spots):
                output = self._handle("", original, args, kwargs)
            else:
                output = original(*args, **kwargs)
        self._settle()
        self._note_weights()
        self.output = output
        return output

    def _note_weights(self) -> None:
        # Otherwise noted as the pass begins: once it has emptied the cache, that takes four times as long.
        if self.plan.moves_weights:
            self._weights = weight_versions(self.model)

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
        if keep:
            self.records[key] = entry
        if paths:
            self.taps[key] = entry
            if self.cut and self.grad:
                self._cut(entry)
                output = entry.tree
            entry.codes = {path: self._live(item_at(entry.tree, path)) for path in paths}
            live = {id(item_at(output, path)): code for path, (_, code) in entry.codes.items()}
            live |= {id(leaf): leaf for leaf, _ in entry.cuts}
            with _gradients_if(self.grad):  # also where the model runs its encoder without them
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
            with _gradients_if(True):
                return returned, returned.view_as(returned)
        with _gradients_if(True):
            return returned, _hand_out(returned, clone=False, detach=True).requires_grad_()

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
        self.fits = (
            plan.fast
            and self.records.keys() == plan.kept
            and not any(entry.impure for entry in self.records.values())
            and (plan.interpreter or not self.random.interpreter_moved())
        )
        if not self.fits:
            self.records = {}

    @property
    def codes(self) -> list[Tensor]:
        """The live codes, one for each spot."""
        return [self.taps[key].codes[spot.path][1] for key, spot in zip(self.chosen, self.plan.spots, strict=True)]

    def can_skip(self) -> bool:
        """Tell whether a fast replay of this pass would be exact."""
        return self.fits and all(entry.intact() for entry in self.records.values())

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
        if self._inputs_watch.changed():
            raise RuntimeError(
                "LatentTap.replay needs the model's inputs as they were in the forward pass, but they were changed "
                "in place since. Change a clone of them, or replay first."
            )
        wants_grad = any(isinstance(code, Tensor) and code.requires_grad for code in new)
        grad = torch.is_grad_enabled() and (self.grad or wants_grad)
        if grad and self.plan.graphless:
            raise RuntimeError(within_checkpoint(self, "Replay under torch.no_grad(), or tap"))
        detach = detach or not grad or not self.grad
        if not detach and any(version_of(weight) != version for weight, version in self._weights):
            raise RuntimeError(
                "LatentTap.replay with gradients needs the weights as they were in the forward pass, but an optimizer "
                "has changed them since. Replay before optimizer.step(), or pass detach=True."
            )
        args, kwargs = map_tensors(self.inputs, lambda t: _hand_out(t, clone=self.plan.clone_inputs, detach=detach))
        full = full or not self.can_skip()
        reads = None if whole is None else ChangedReads(self.model, grad=grad)
        again = _Replay(self, new, (args, kwargs), full=full, detach=detach, grad=grad, whole=whole, reads=reads)
        with ExitStack() as stack:
            stack.enter_context(overridden({"": self.model, **self.plan.modules(self.model)}, again.handle))
            stack.enter_context(preserved_random_state(self.device))
            for kind, dtype, enabled, cache in self.autocast:
                # Weights cast without a graph must not be found in the cache by later code with one.
                stack.enter_context(torch.autocast(kind, dtype, enabled=enabled, cache_enabled=cache and not detach))
            stack.enter_context(torch.set_grad_enabled(grad))
            if grad and detach:
                again.at_code = stack.enter_context(constant_weights(self.model))
            if not update:
                stack.enter_context(frozen_norm_statistics(self.model))
                lent = {name: value.clone() for name, value in self.buffers.items()}
                stack.enter_context(borrowed_buffers(self.model, lent))
            if reads is not None:
                stack.enter_context(reads.watching())
            output = self.model(*args, **kwargs)
            if reads is not None:
                output = reads.finished(output)
        if not again.reached:
            raise RuntimeError(
                f"LatentTap.replay did not come to {self.earliest[0]!r} again: {type(self.model).__name__} calls other "
                "modules than in the pass that was captured."
            )
        if not detach:
            self._note_weights()
        return output


class _Replay:
    """Answers the calls of one replay: from the records before the code, by running them after it."""

    def __init__(
        self,
        capture: Capture,
        new: Sequence[NewCode],
        inputs: Any,
        *,
        full: bool,
        detach: bool,
        grad: bool,
        whole: WholePassChange | None,
        reads: ChangedReads | None,
    ):
        self.capture = capture
        self.whole = whole
        self.reads = reads
        self.new = new
        self.inputs = inputs
        self.full = full
        self.detach = detach
        self.grad = grad
        records, late = ({}, frozenset()) if full else (capture.records, capture.plan.late)
        self.early = {key: entry for key, entry in records.items() if key not in late}
        # What follows the code is to be computed where only that is to get gradients.
        self.late = {key: records[key] for key in late} if not (grad and detach) and whole is None else {}
        self.counts: Counter[str] = Counter()
        self.reached = False
        self.at_code: Callable[[], None] = lambda: None  # what to do when the code is reached
        self._started = False

    def handle(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "" and not self._started:
            self._started = True
            # What hooks made of the inputs in the captured pass, not what they would make of that again.
            args, kwargs = self.inputs
            self.capture.random.restore()
            self._follow(self.inputs)
        key = (name, self.counts[name])
        self.counts[name] += 1
        if key in self.capture.taps:
            return self._tapped(key, original, args, kwargs)
        records = self.late if self.reached else self.early
        if key in records:
            return self._skipped(records[key])
        return original(*args, **kwargs)

    def _skipped(self, entry: Record) -> Any:
        entry.random.restore()
        self.counts.update(entry.inner)
        return self._follow(entry.hand_out(detach=self.detach))

    def _follow(self, tree: Any) -> Any:
        if self.reads is not None and not self.reads.begun:
            self.reads.add(tree)
        return tree

    def _tapped(self, key: Key, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        capture = self.capture
        entry = capture.taps[key]
        first = key == capture.earliest
        wanted = {
            spot.path: code
            for spot, chosen, code in zip(capture.plan.spots, capture.chosen, self.new, strict=True)
            if chosen == key
        }
        run = self._must_run(entry, wanted, first)
        tree = original(*args, **kwargs) if run else self._skipped(entry)
        if first:
            self.reached = True
            entry.random.restore()
            self.at_code()
        put = {}
        with _gradients_if(self.grad):
            for path, new in wanted.items():
                returned = item_at(tree, path)
                recomputed = run and (self.full or not first)
                current = returned if recomputed else _hand_out(entry.codes[path][1], clone=False, detach=self.detach)
                put[id(returned)] = _new_code(new, current).clone()
        tree = self._follow(map_tensors(tree, lambda t: put.get(id(t), t)))
        if first and self.reads is not None and self.whole is not None:
            self.reads.begin(self.whole, next(iter(put.values())))
            codes = {id(code): self.reads.returned(code) for code in put.values()}
            tree = map_tensors(tree, lambda t: codes.get(id(t), t))
        return tree

    def _must_run(self, entry: Record, wanted: dict[Path, NewCode], first: bool) -> bool:
        if self.full or entry.impure or not entry.intact():
            return True
        if first:
            return False
        codes = {id(returned) for returned, _ in entry.codes.values()}
        replaced = all(isinstance(code, Tensor) for code in wanted.values()) and len(wanted) == len(entry.codes)
        return not (replaced and all(id(tensor) in codes for _, tensor in tensors_in(entry.tree)))


@contextmanager
def _gradients_if(wanted: bool) -> Iterator[None]:
    with torch.inference_mode(not wanted and torch.is_inference_mode_enabled()), torch.set_grad_enabled(wanted):
        yield


def _hand_out(tensor: Tensor, *, clone: bool, detach: bool) -> Tensor:
    if detach:
        tensor = tensor.detach()
    return tensor.clone() if clone or tensor.is_inference() else tensor


def _new_code(new: NewCode, current: Tensor) -> Tensor:
    code = current if new is None else new(current) if callable(new) else new
    if not isinstance(code, Tensor):
        raise TypeError(
            f"LatentTap.replay needs a tensor, or a callable that returns one; got {type(code).__name__}. "
            "Pass mask.apply or mask.apply(tap.code)."
        )
    if code.shape != current.shape or code.device != current.device:
        raise ValueError(
            f"LatentTap.replay needs a code of shape {tuple(current.shape)} on {current.device}; "
            f"got {tuple(code.shape)} on {code.device}."
        )
    if code.dtype != current.dtype and not torch.is_autocast_enabled(code.device.type):  # which casts it
        raise TypeError(
            f"LatentTap.replay needs a code of {current.dtype}; got {code.dtype}. Write code.to({current.dtype})."
        )
    return code


def within_checkpoint(capture: Capture, remedy: str) -> str:
    """Say why a code of an activation-checkpointed part has no replays with gradients."""
    return (
        f"LatentTap cannot replay from {capture.earliest[0]!r}: it runs inside an activation-checkpointed part of "
        f"{type(capture.model).__name__}, and the backward pass would compute that part again with the old code. "
        f"{remedy} the module whose whole call is checkpointed, or one outside of it; with use_reentrant=False in any "
        "case."
    )


def weight_versions(model: nn.Module) -> list[tuple[Tensor, int | None]]:
    """Note how often each trainable weight was changed in place."""
    return [
        (weight, version_of(weight))
        for module in submodules(model)
        for weight in module._parameters.values()
        if weight is not None and weight.requires_grad
    ]


def _autocast_state(kind: str) -> tuple[str, torch.dtype, bool, bool]:
    return (
        kind,
        torch.get_autocast_dtype(kind),
        torch.is_autocast_enabled(kind),
        torch.is_autocast_cache_enabled(),
    )
