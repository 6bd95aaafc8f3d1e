"""Capture a forward pass at some codes, and run what follows them again: the machinery behind `LatentTap`.

Call `t` the moment when the tapped module returns its code. A call that finished before `t` cannot depend on the code,
so a replay hands out what it returned; every other call is run again. That is exact when the only effect of a skipped
call is its return value, which `make_plan` establishes call by call and then proves on the model itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from latentaug.modes import (
    RandomState,
    borrowed_buffers,
    constant_weights,
    frozen_norm_statistics,
    is_norm_statistic,
    preserved_random_state,
)
from latentaug.trace import (
    Call,
    InputWatch,
    Path,
    ancestors,
    is_compiled,
    item_at,
    map_tensors,
    overridden,
    record,
    storage_of,
    tensors_in,
    version_of,
)

logger = logging.getLogger("latentaug")

Key: TypeAlias = tuple[str, int]
NewCode: TypeAlias = Tensor | Callable[[Tensor], Tensor] | None


class Spot(NamedTuple):
    """Where a code is: a submodule's name, and the path into what it returns."""

    name: str
    path: Path


@dataclass(frozen=True)
class Plan:
    """What a pass of one model must keep so that it can be replayed from its codes."""

    spots: tuple[Spot, ...]
    call: int
    totals: dict[str, int]  # how often each tapped module is called in a pass
    kept: frozenset[Key]  # calls whose results replays hand out
    cloned: frozenset[Key]  # calls whose results are changed in place later, so that a clone is taken at return
    clone_inputs: bool
    buffers: tuple[str, ...]  # buffers, other than normalisation statistics, that a pass changes
    fast: bool = True

    def chosen(self, spot: Spot) -> Key:
        """Return the call of the tapped module that the code is taken from."""
        total = self.totals[spot.name]
        number = self.call + total if self.call < 0 else self.call
        if not 0 <= number < total:
            raise ValueError(f"LatentTap needs `call` within the {total} calls of {spot.name!r}; got {self.call}.")
        return spot.name, number

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the submodules whose calls a pass must see."""
        names = {name for name, _ in self.kept} | {spot.name for spot in self.spots}
        for spot in self.spots:  # compiled code around a tapped module would not see what stands in for it
            parts = spot.name.split(".")
            parents = {".".join(parts[:n]) for n in range(1, len(parts))}
            names |= {name for name in parents if is_compiled(model.get_submodule(name))}
        return {name: model.get_submodule(name) for name in sorted(names) if name}


# Capturing --------------------------------------------------------------------------------------------------------


class Record:
    """What one call returned, and the state of the world at that moment."""

    def __init__(self, tree: Any, random: RandomState, inner: Counter[str], impure: bool, cloned: bool):
        self.tree = map_tensors(tree, lambda tensor: tensor)  # containers of our own: decoders pop from theirs
        self.versions = [(t, version_of(t)) for _, t in tensors_in(self.tree)]
        self.random = random
        self.inner = inner  # calls of watched modules made inside this one
        self.impure = impure  # it changed its inputs
        self.cloned = cloned
        self.grad = torch.is_grad_enabled()
        self.codes: dict[Path, tuple[Tensor, Tensor]] = {}  # what stands in the tree, and the live code

    def intact(self) -> bool:
        """Tell whether the recorded values are still what the call returned."""
        return all(version_of(tensor) == version for tensor, version in self.versions)

    def hand_out(self, *, detach: bool) -> Any:
        """Return the tree in a form that the running model may use, and change in place."""
        return map_tensors(self.tree, lambda t: _hand_out(t, clone=self.cloned, detach=detach))


class Capture:
    """One forward pass: its inputs, its codes, and the results that replays hand out."""

    def __init__(self, model: nn.Module, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.model = model
        self.plan = plan
        self.device = device_of(model, args, kwargs)
        self.random = RandomState.capture(self.device)
        self.grad = torch.is_grad_enabled()
        self.autocast = [_autocast_state(kind) for kind in {"cpu", self.device.type}]
        self.buffers = {name: model.get_buffer(name).clone() for name in plan.buffers}
        self.inputs = map_tensors((args, kwargs), torch.clone) if plan.clone_inputs else (args, kwargs)
        self._inputs_watch = InputWatch(*self.inputs)
        self._weights: list[tuple[Tensor, int | None]] = []
        self.counts: Counter[str] = Counter()
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
        return output

    def _note_weights(self) -> None:
        self._weights = [(weight, version_of(weight)) for weight in self.model.parameters() if weight.requires_grad]

    def _handle(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = (name, self.counts[name])
        self.counts[name] += 1
        keep = not self._skipping and key in self.plan.kept
        paths = [spot.path for spot in self.plan.spots if spot.name == name]
        if not keep and not paths:
            return original(*args, **kwargs)
        watch, before = InputWatch(args, kwargs), Counter(self.counts)
        self._skipping += keep
        try:
            output = original(*args, **kwargs)
        finally:
            self._skipping -= keep
        random, inner, impure = RandomState.capture(self.device), self.counts - before, watch.changed()
        clone = key in self.plan.cloned or any(t.is_inference() for _, t in tensors_in(output))
        entry = Record(map_tensors(output, torch.clone) if clone else output, random, inner, impure, clone)
        if keep:
            self.records[key] = entry
        if paths:
            self.taps[key] = entry
            entry.codes = {path: self._live(item_at(entry.tree, path)) for path in paths}
            live = {id(item_at(output, path)): code for path, (_, code) in entry.codes.items()}
            with torch.set_grad_enabled(self.grad):  # also where the model runs its encoder without gradients
                output = map_tensors(output, lambda t: live[id(t)].clone() if id(t) in live else t)
        self.order.append(key)
        return output

    def _live(self, returned: Tensor) -> tuple[Tensor, Tensor]:
        """Return what stands in the output with the code to derive by, which a frozen encoder does not give."""
        frozen = self.grad and not returned.requires_grad
        if frozen and returned.is_floating_point() and not returned.is_inference():
            return returned, returned.detach().requires_grad_()
        return returned, returned

    def _settle(self) -> None:
        """Check the finished pass against the plan, and let go of what no replay can ask for."""
        plan = self.plan
        for name, total in plan.totals.items():
            if self.counts[name] == 0:
                raise RuntimeError(f"LatentTap: {name or 'the model'!r} was not called in this pass of the model.")
            if self.counts[name] != total:
                self.plan = plan = replace(plan, totals={**plan.totals, name: self.counts[name]}, fast=False)
        self.chosen = [plan.chosen(spot) for spot in plan.spots]
        self.earliest = min(self.chosen, key=self.order.index)
        self.taps = {key: self.taps[key] for key in self.chosen}
        self.fits = (
            plan.fast and self.records.keys() == plan.kept and not any(entry.impure for entry in self.records.values())
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

    def replay(self, new: Sequence[NewCode], *, full: bool = False, detach: bool = False, update: bool = False) -> Any:
        """Run the model again from new codes; see `LatentTap.replay`."""
        if self._inputs_watch.changed():
            raise RuntimeError(
                "LatentTap.replay needs the model's inputs as they were in the forward pass, but they were changed "
                "in place since. Change a clone of them, or replay first."
            )
        wants_grad = any(isinstance(code, Tensor) and code.requires_grad for code in new)
        grad = torch.is_grad_enabled() and (self.grad or wants_grad)
        detach = detach or not grad or not self.grad
        if not detach and any(version_of(weight) != version for weight, version in self._weights):
            raise RuntimeError(
                "LatentTap.replay with gradients needs the weights as they were in the forward pass, but an optimizer "
                "has changed them since. Replay before optimizer.step(), or pass detach=True."
            )
        args, kwargs = map_tensors(self.inputs, lambda t: _hand_out(t, clone=self.plan.clone_inputs, detach=detach))
        again = _Replay(self, new, (args, kwargs), full=full or not self.can_skip(), detach=detach, grad=grad)
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
            self.random.restore()
            output = self.model(*args, **kwargs)
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

    def __init__(self, capture: Capture, new: Sequence[NewCode], inputs: Any, *, full: bool, detach: bool, grad: bool):
        self.capture = capture
        self.new = new
        self.inputs = inputs
        self.full = full
        self.detach = detach
        self.grad = grad
        self.records = {} if full else capture.records
        self.counts: Counter[str] = Counter()
        self.reached = False
        self.at_code: Callable[[], None] = lambda: None  # what to do when the code is reached
        self._started = False

    def handle(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "" and not self._started:
            self._started = True
            # What hooks made of the inputs in the captured pass, not what they would make of that again.
            args, kwargs = self.inputs
        key = (name, self.counts[name])
        self.counts[name] += 1
        if key in self.capture.taps:
            return self._tapped(key, original, args, kwargs)
        if not self.reached and key in self.records:
            return self._skipped(self.records[key])
        return original(*args, **kwargs)

    def _skipped(self, entry: Record) -> Any:
        entry.random.restore()
        self.counts += entry.inner
        return entry.hand_out(detach=self.detach)

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
        with torch.set_grad_enabled(self.grad):
            for path, new in wanted.items():
                returned = item_at(tree, path)
                recomputed = run and (self.full or not first)
                current = returned if recomputed else _hand_out(entry.codes[path][1], clone=False, detach=self.detach)
                put[id(returned)] = _new_code(new, current).clone()
        return map_tensors(tree, lambda t: put.get(id(t), t))

    def _must_run(self, entry: Record, wanted: dict[Path, NewCode], first: bool) -> bool:
        if self.full or entry.impure or not entry.intact():
            return True
        if first:
            return False
        codes = {id(returned) for returned, _ in entry.codes.values()}
        replaced = all(isinstance(code, Tensor) for code in wanted.values()) and len(wanted) == len(entry.codes)
        return not (replaced and all(id(tensor) in codes for _, tensor in tensors_in(entry.tree)))


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
    return code


def _autocast_state(kind: str) -> tuple[str, torch.dtype, bool, bool]:
    return (
        kind,
        torch.get_autocast_dtype(kind),
        torch.is_autocast_enabled(kind),
        torch.is_autocast_cache_enabled(),
    )


def device_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Return the device that a call of the model runs on."""
    tensor = next((t for _, t in tensors_in((args, kwargs))), None)
    tensor = next(model.parameters(), tensor) if tensor is None else tensor
    return torch.device("cpu") if tensor is None else tensor.device


# Planning ---------------------------------------------------------------------------------------------------------


def make_plan(
    model: nn.Module, spots: tuple[Spot, ...], call: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan:
    """Find out what a replay of `model` from `spots` may skip, and prove it on two samples of the inputs.

    Parameters, buffers, gradients, modes and random state are left as they were.

    Raises:
        RuntimeError: A tapped module is not called, or even a full replay does not repeat the forward pass.
    """
    with sandbox(model, device_of(model, args, kwargs)):
        # A model that is compiled would be compiled again for a batch of another size.
        size = None if any(is_compiled(module) for module in model.modules()) else 2
        try:
            sample = _sample(args, kwargs, size)
            trace, changed = _trace(model, spots, sample)
        except Exception:  # a model that insists on the batch it was called with; if it fails again, so be it
            sample = _sample(args, kwargs, size=None)
            trace, changed = _trace(model, spots, sample)
        plan = _plan(trace, spots, call, changed)
        return _proved(model, plan, sample)


@contextmanager
def sandbox(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the model run, with gradients, for our own purposes: its buffers and the random streams stay as they are."""
    lent = {name: value.clone() for name, value in _plain_buffers(model)}
    with (
        preserved_random_state(device),
        frozen_norm_statistics(model),
        borrowed_buffers(model, lent),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def _plain_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for name, value in module.named_buffers(recurse=False):
            if not is_norm_statistic(module, name):
                yield f"{path}.{name}" if path else name, value


def _sample(args: tuple[Any, ...], kwargs: dict[str, Any], size: int | None) -> Any:
    """Copy the inputs, of a batch the first samples only."""
    batch = next((t.shape[0] for _, t in tensors_in((args, kwargs)) if t.is_floating_point() and t.ndim), None)

    def cut(tensor: Tensor) -> Tensor:
        part = tensor.detach()[:size] if tensor.ndim and tensor.shape[0] == batch else tensor.detach()
        return part.clone().requires_grad_(tensor.requires_grad)

    return map_tensors((args, kwargs), cut)


def _trace(model: nn.Module, spots: tuple[Spot, ...], inputs: Any) -> tuple[Call, tuple[str, ...]]:
    args, kwargs = map_tensors(inputs, torch.clone)
    before = {name: (value, version_of(value)) for name, value in _plain_buffers(model)}
    trace, _ = record(model, lambda: model(*args, **kwargs), inside=frozenset(spot.name for spot in spots))
    changed = []
    for name, value in _plain_buffers(model):
        old, version = before.get(name, (None, None))
        if value is not old or version_of(value) != version:
            changed.append(name)
    return trace, tuple(changed)


def _plan(trace: Call, spots: tuple[Spot, ...], call: int, buffers: tuple[str, ...]) -> Plan:
    totals = Counter(entry.name for entry in trace.walk())
    plan = Plan(
        spots=spots,
        call=call,
        totals={spot.name: totals[spot.name] for spot in spots},
        kept=frozenset(),
        cloned=frozenset(),
        clone_inputs=trace.impure,
        buffers=buffers,
    )
    keys = {plan.chosen(spot) for spot in spots}
    tapped = sorted((entry for entry in trace.walk() if entry.key in keys), key=lambda entry: entry.finish)
    kept = _skippable(trace, tapped[0])
    moved = frozenset(entry.key for entry in [*kept, *tapped] if entry.moved())
    return replace(plan, kept=frozenset(entry.key for entry in kept), cloned=moved)


def _skippable(trace: Call, tapped: Call) -> list[Call]:
    """Outermost calls that finished before the code and whose only effect is what they returned."""
    rejected: set[Call] = set()
    while True:
        kept = list(_finished(trace, tapped, rejected))
        shared = {call for call in kept if call.moved() and _shares(call, kept)}
        if not shared:
            return kept
        rejected |= shared


def _finished(call: Call, tapped: Call, rejected: set[Call]) -> Iterator[Call]:
    for child in call.children:
        if child is tapped or child.start > tapped.finish:
            continue
        if child.finish < tapped.finish and not child.impure and child not in rejected:
            yield child
        else:
            yield from _finished(child, tapped, rejected)


def _shares(call: Call, others: list[Call]) -> bool:
    """Tell whether something that `call` returned, and that was changed later, is also known elsewhere."""
    moved = {storage_of(tensor) for tensor in call.moved()}
    if moved & call.inputs:
        return True
    return any(moved & {storage_of(t) for _, t in other.tensors} for other in others if other is not call)


# Proving ----------------------------------------------------------------------------------------------------------


def _proved(model: nn.Module, plan: Plan, inputs: Any) -> Plan:
    """Compare replays with the model's own forward, and drop to full replay where the fast one is not the same."""
    args, kwargs = map_tensors(inputs, torch.clone)
    capture, output = captured(model, plan, args, kwargs)
    if not _same(output, capture.replay([None] * len(plan.spots), full=True)):
        raise RuntimeError(
            f"LatentTap cannot replay {type(model).__name__}: run again with the same inputs and random state, it "
            "returns something else, so it keeps state of its own between calls. Make its forward depend on its "
            "inputs, parameters, buffers and the global random streams only."
        )
    halved = [code.detach().mul(0.5).requires_grad_(code.is_floating_point()) for code in capture.codes]
    expected = capture.replay(halved, full=True)
    gradients = _checked_gradients(capture, expected, halved)
    if not plan.kept:
        return plan
    if not capture.can_skip():
        return without_skipping(model, plan, "it does not call the same modules in every pass")
    args, kwargs = map_tensors(inputs, _other)  # so that anything remembered between calls is another pass's
    model(*args, **kwargs)
    try:
        replayed = capture.replay(halved)
    except Exception:  # whatever a model raises that misses what a skipped module would have left for it
        replayed = None
    if not _same(replayed, expected):
        return without_skipping(model, plan, "it keeps state between modules that their outputs do not show")
    if gradients is None or not _same(_gradients(model, replayed, halved), gradients):
        return without_skipping(model, plan, "gradients reach it in a way that outputs of modules do not show")
    return plan


def _other(tensor: Tensor) -> Tensor:
    return 0.7 * tensor.flip(-1) + 0.3 * torch.rand_like(tensor) if tensor.is_floating_point() else tensor.clone()


def _gradients(model: nn.Module, output: Any, codes: list[Tensor]) -> list[Tensor | None] | None:
    """Differentiate by the weights and the codes, or the codes alone where that is all the model allows; or None."""
    results = [t for _, t in tensors_in(output) if t.requires_grad]
    if not results:
        return []
    objective = torch.stack([t.float().square().mean() for t in results]).sum()
    codes = [code for code in codes if code.requires_grad]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for wanted in (weights + codes, codes):
        try:
            return list(torch.autograd.grad(objective, wanted, retain_graph=True, allow_unused=True))
        except RuntimeError:  # reentrant checkpointing; or a model that nobody can train, only run
            continue
    return None


def captured(model: nn.Module, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Capture, Any]:
    """Run the model once, and return what replays need together with its output."""
    captures: list[Capture] = []

    def handle(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        captures.append(Capture(model, plan, args, kwargs))
        return captures[-1].run(original, args, kwargs)

    with overridden({"": model}, handle):
        output = model(*args, **kwargs)
    return captures[-1], output


def _checked_gradients(capture: Capture, output: Any, codes: list[Tensor]) -> list[Tensor | None] | None:
    """Differentiate a replay from `codes`, as `_gradients` does.

    Raises:
        RuntimeError: In the backward pass, activation checkpointing would compute from the old codes again.
    """
    spots, model, called = capture.plan.spots, capture.model, False

    def keep(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal called
        called = True
        tree = original(*args, **kwargs)
        put = {}
        for spot, old, new in zip(spots, capture.codes, codes, strict=True):
            if spot.name == name and _same(item_at(tree, spot.path), old):  # not another call of the same module
                put[id(item_at(tree, spot.path))] = new
        return map_tensors(tree, lambda t: put[id(t)].clone() if id(t) in put else t)

    with overridden({spot.name: model.get_submodule(spot.name) for spot in spots}, keep):
        gradients = _gradients(model, output, codes)
    if called:
        astray = not _same(gradients, _gradients(model, output, codes))
    else:
        nodes = ancestors([tensor.grad_fn for _, tensor in tensors_in(output)])
        reentrant = any("CheckpointFunction" in type(node).__name__ for node in nodes)
        astray = reentrant and not capture.taps[capture.earliest].grad
    if astray:
        raise RuntimeError(
            f"LatentTap cannot replay from {capture.earliest[0]!r}: it runs inside an activation-checkpointed part of "
            f"{type(model).__name__}, and the backward pass would compute that part again with the old code. Tap the "
            "module whose whole call is checkpointed, or one outside of it; with use_reentrant=False in any case."
        )
    return gradients


def without_skipping(model: nn.Module, plan: Plan, reason: str) -> Plan:
    """Return the plan for full replay, and say why; once, as plans are kept."""
    logger.info("%s is replayed in full, because %s; the results are the same.", type(model).__name__, reason)
    return replace(plan, fast=False)


def _same(a: Any, b: Any) -> bool:
    """Tell whether two trees hold the same numbers, up to the rounding of kernels that are not deterministic."""
    left, right = list(tensors_in(a)), list(tensors_in(b))
    return len(left) == len(right) and all(
        path == other_path and x.shape == y.shape and _close(x.detach(), y.detach())
        for (path, x), (other_path, y) in zip(left, right, strict=True)
    )


def relative_change(a: Any, b: Any) -> float:
    """Return ‖a - b‖ / ‖b‖ over all floating-point tensors of two like trees."""
    left, right = (torch.cat([_wide(t).flatten() for _, t in tensors_in(x) if t.is_floating_point()]) for x in (a, b))
    return float((left - right).norm() / right.norm().clamp_min(torch.finfo(right.dtype).tiny))


def _close(x: Tensor, y: Tensor) -> bool:
    if not x.is_floating_point() or not bool(y.isfinite().all()):
        return bool(((x == y) | (x.isnan() & y.isnan())).all())
    tolerance = 1e-2 if x.element_size() < 4 else 1e-5
    return bool((_wide(x) - _wide(y)).norm() <= tolerance * _wide(y).norm())


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype == torch.float64 else tensor.float()
