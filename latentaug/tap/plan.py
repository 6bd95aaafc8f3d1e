"""Find out what replays of a model may skip, and prove it on the model itself.

One recorded pass tells which calls finished before the code, and whether anything but what they returned came of them;
what the record cannot show, such as state kept on modules, shows when fast and full replays are compared.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from latentaug.tap.capture import Capture, Plan, weight_versions, within_checkpoint
from latentaug.tracing.intercept import is_compiled, overridden
from latentaug.tracing.isolation import plain_buffers, preserved_modes, sandbox, submodules
from latentaug.tracing.location import Spot, device_of, few_samples, first_samples
from latentaug.tracing.random_state import RandomState
from latentaug.tracing.record import Call, ancestors, can_be_watched, record
from latentaug.tracing.tree import is_differentiable, item_at, map_tensors, storage_of, tensors_in, version_of

logger = logging.getLogger("latentaug")


def make_plan(
    model: nn.Module, spots: tuple[Spot, ...], call: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan:
    """Find out what a replay of `model` from `spots` may skip, and prove it on two samples of the inputs.

    Parameters, buffers, gradients, modes and random state are left as they were.

    Raises:
        RuntimeError: A tapped module is not called, or even a full replay does not repeat the forward pass.
    """
    if any("_fsdp_wrapped_module" in module._modules for module in submodules(model)[1:]):
        raise TypeError(
            f"LatentTap cannot replay {type(model).__name__}: parts of it are wrapped by FullyShardedDataParallel by "
            "themselves, which frees their weights in the first backward pass through a graph. Shard it by "
            "torch.distributed.fsdp.fully_shard, or wrap the whole model only."
        )
    with sandbox(model, device_of(model, args, kwargs)):
        try:
            sample = first_samples((args, kwargs), few_samples(model))
            plan = _planned(model, spots, call, sample)
        except Exception:  # a model that insists on the batch it was called with; if it fails again, so be it
            sample = first_samples((args, kwargs), None)
            plan = _planned(model, spots, call, sample)
        return _proved(model, plan, sample)


def initialise(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let lazy modules make their weights, from the random stream that the model's first pass would take them from."""
    if any(map(is_lazy, chain(model.parameters(), model.buffers()))):
        with preserved_modes(model), torch.inference_mode(False), torch.no_grad():
            model.eval()  # where nothing else is drawn, and no statistics move
            args, kwargs = map_tensors((args, kwargs), torch.clone)
            model(*args, **kwargs)


def _planned(model: nn.Module, spots: tuple[Spot, ...], call: int, inputs: Any) -> Plan:
    """Run the model once, and read off its calls what may be skipped."""
    args, kwargs = map_tensors(inputs, torch.clone)
    before = {name: (value, version_of(value)) for name, value in plain_buffers(model)}
    random, weights = RandomState.capture(device_of(model, args, kwargs)), weight_versions(model)
    names = frozenset(spot.name for spot in spots)
    # A compiled part runs other code while operations are watched, and shows none of them when it doesn't.
    watched = can_be_watched(inputs) and not any(map(is_compiled, submodules(model)))
    trace, _ = record(model, lambda: model(*args, **kwargs), inside=names, sources=spots if watched else ())
    totals = Counter(entry.name for entry in trace.walk())
    plan = Plan(
        spots=spots,
        call=call,
        totals={spot.name: totals[spot.name] for spot in spots},
        kept=frozenset(),
        late=frozenset(),
        cloned=frozenset(),
        clone_inputs=trace.impure,
        buffers=tuple(_changed_buffers(model, before)),
        interpreter=random.interpreter_moved(),
        moves_weights=any(version_of(weight) != version for weight, version in weights),
    )
    keys = {plan.chosen(spot) for spot in spots}
    tapped = sorted((entry for entry in trace.walk() if entry.key in keys), key=lambda entry: entry.finish)
    # Hooks on a call's backward pass see the gradients of what runs within that very call only.
    hooked = [entry for entry in trace.walk() if model.get_submodule(entry.name)._backward_hooks]
    kept = _skippable(trace, tapped, {inner for entry in hooked for inner in entry.walk()})
    return replace(
        plan,
        kept=frozenset(entry.key for entry in kept),
        late=frozenset(entry.key for entry in kept if entry.start > tapped[0].finish),
        cloned=frozenset(entry.key for entry in [*kept, *tapped] if entry.moved()),
    )


def _changed_buffers(model: nn.Module, before: Mapping[str, tuple[Tensor, int | None]]) -> Iterator[str]:
    for name, value in plain_buffers(model):
        old, version = before.get(name, (None, None))
        if value is not old or version_of(value) != version:
            yield name


def _skippable(trace: Call, tapped: list[Call], rejected: set[Call]) -> list[Call]:
    """Outermost calls that no code has a part in, and whose only effect is what they returned."""
    while True:
        kept = list(_independent(trace, tapped, rejected))
        shared = {call for call in kept if call.moved() and _shares(call, kept)}
        if not shared:
            return kept
        rejected |= shared


def _independent(call: Call, tapped: list[Call], rejected: set[Call]) -> Iterator[Call]:
    first = tapped[0]
    for child in call.children:
        if child in tapped:
            continue
        independent = child.finish < first.finish or (child.start > first.finish and child.apart)
        if independent and not child.impure and child not in rejected:
            yield child
        else:
            yield from _independent(child, tapped, rejected)


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
    # Halving alone would not show behind a normalisation, nor what depends on where the code is largest.
    codes = [code.detach().flip(-1).mul(0.5).requires_grad_(is_differentiable(code)) for code in capture.codes]
    expected = capture.replay(codes, full=True)
    gradients, right = _checked_gradients(capture, expected, codes)
    plan = replace(plan, graphless=not right)
    reason = _misfit(capture, inputs, codes, expected, gradients, graphless=plan.graphless)
    # What follows the code may keep state, or be checkpointed, where what precedes it does not.
    if reason and plan.late:
        return _proved(model, replace(plan, kept=plan.kept - plan.late, late=frozenset()), inputs)
    return without_skipping(model, plan, reason) if reason else plan


def _misfit(
    capture: Capture,
    inputs: Any,
    codes: list[Tensor],
    expected: Any,
    gradients: list[Tensor | None] | None,
    *,
    graphless: bool,
) -> str | None:
    """Tell why a fast replay would not give what is expected of a full one; None if it does."""
    if not capture.can_skip():
        return "it does not call the same modules in every pass"
    args, kwargs = map_tensors(inputs, _other)  # so that anything remembered between calls is another pass's
    capture.model(*args, **kwargs)
    try:
        with torch.set_grad_enabled(not graphless):
            replayed = capture.replay(codes)
    except Exception:  # whatever a model raises that misses what a skipped module would have left for it
        replayed = None
    if not _same(replayed, expected):
        return "it keeps state between modules that their outputs do not show"
    if graphless:
        return None
    if gradients is None or not _same(_gradients(capture.model, replayed, codes), gradients):
        return "gradients reach it in a way that outputs of modules do not show"
    return None


def _other(tensor: Tensor) -> Tensor:
    return 0.7 * tensor.flip(-1) + 0.3 * torch.rand_like(tensor) if is_differentiable(tensor) else tensor.clone()


def _gradients(model: nn.Module, output: Any, codes: list[Tensor]) -> list[Tensor | None] | None:
    """Differentiate by the weights and the codes, or the codes alone where that is all the model allows; or None."""
    results = [t for _, t in tensors_in(output) if t.requires_grad]
    if not results:
        return []
    objective = torch.stack([_real(t).float().square().mean() for t in results]).sum()
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


def _checked_gradients(capture: Capture, output: Any, codes: list[Tensor]) -> tuple[list[Tensor | None] | None, bool]:
    """Differentiate a replay from `codes`, as `_gradients` does, and tell whether the gradients are right.

    They are not where, in the backward pass, activation checkpointing computes from the old codes again.

    Raises:
        RuntimeError: The checkpointing is reentrant, so that the captured pass has no graph at the code either.
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
    if not capture.taps[capture.earliest].grad:
        nodes = ancestors([tensor.grad_fn for _, tensor in tensors_in(output)])
        if any("CheckpointFunction" in type(node).__name__ for node in nodes):
            raise RuntimeError(within_checkpoint(capture, "Tap"))
    return gradients, not called or _same(gradients, _gradients(model, output, codes))


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
    left, right = (torch.cat([_wide(t).flatten() for _, t in tensors_in(x) if is_differentiable(t)]) for x in (a, b))
    return float((left - right).norm() / right.norm().clamp_min(torch.finfo(right.dtype).tiny))


def _close(x: Tensor, y: Tensor) -> bool:
    x, y = _real(x), _real(y)
    if not x.is_floating_point() or not bool(y.isfinite().all()):
        return bool(((x == y) | (x.isnan() & y.isnan())).all())
    tolerance = 1e-2 if x.element_size() < 4 else 1e-5
    return bool((_wide(x) - _wide(y)).norm() <= tolerance * _wide(y).norm())


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _wide(tensor: Tensor) -> Tensor:
    tensor = _real(tensor.detach())
    return tensor if tensor.dtype == torch.float64 else tensor.float()
