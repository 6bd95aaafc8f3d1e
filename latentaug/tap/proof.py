"""Prove replays on the model itself: against its own forward, and fast ones against full ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.tap.capture import Capture, Plan
from latentaug.tap.replaying import within_checkpoint
from latentaug.tracing.intercept import overridden
from latentaug.tracing.location import device_of
from latentaug.tracing.moving import Before
from latentaug.tracing.random_state import preserved_random_state
from latentaug.tracing.record import ancestors
from latentaug.tracing.state import State, is_large
from latentaug.tracing.tree import is_differentiable, item_at, map_tensors, tensors_in


def prove(capture: Capture, output: Any, inputs: Any) -> tuple[Plan, str | None]:
    """Compare replays of a pass with its output, and with one another, and tell why fast ones differ, if they do.

    Args:
        capture: The pass.
        output: What the model returned.
        inputs: Its arguments, to be called with again, and with others like them.

    Returns:
        The plan, as far as it was found good, and what is wrong with fast replays.

    Raises:
        RuntimeError: Even a full replay does not repeat the pass.
    """
    model, plan, nothing = capture.model, capture.plan, [None] * len(capture.plan.spots)
    _run_another(capture, inputs)
    if not same(output, capture.replay(nothing, full=True)):
        if plan.scratch:  # some of which is read before it is written
            args, kwargs = map_tensors(inputs, torch.clone)
            return prove(*captured(model, replace(plan, scratch=frozenset()), args, kwargs), inputs)
        raise RuntimeError(
            f"LatentTap cannot replay {type(model).__name__}: run again with the same inputs and random state, it "
            f"returns something else, so it keeps state of its own between calls{_told(plan)}. Make its forward depend "
            "on its inputs, parameters, buffers and the global random streams only."
        )
    # Halving alone would not show behind a normalisation, nor what depends on where the code is largest.
    codes = [code.detach().flip(-1).mul(0.5).requires_grad_(is_differentiable(code)) for code in capture.codes]
    expected = capture.replay(codes, full=True)
    gradients, right = _checked_gradients(capture, expected, codes)
    plan = replace(plan, graphless=not right)
    reason = _misfit(capture, inputs, codes, expected, gradients, graphless=plan.graphless)
    # What follows the code may keep state, or be checkpointed, where what precedes it does not.
    if reason and plan.late:
        without_late = replace(plan, kept=plan.kept - plan.late, late=frozenset())
        args, kwargs = map_tensors(inputs, torch.clone)
        return prove(*captured(model, without_late, args, kwargs), inputs)
    return plan, reason


def see_that_a_tap_changes_nothing(model: nn.Module, plan: Plan, inputs: Any, name: str) -> None:
    """Compare a pass with a tap to one without, where what a tapped module returns is changed in place later.

    A code is a tensor of its own. What is done to it is not done to the tensor that the module was given, or keeps,
    though it returned the same memory.

    Raises:
        RuntimeError: They differ.
    """
    before, device = Before(model, plan.moving), device_of(model, *inputs)

    def run(tapped: bool) -> Any:
        args, kwargs = map_tensors(inputs, torch.clone)
        with before.again(), preserved_random_state(device):
            output = captured(model, plan, args, kwargs)[1] if tapped else model(*args, **kwargs)
            return output, State(model, copied=None).values()

    if not same(run(True), run(False)):
        raise RuntimeError(
            f"LatentTap cannot tap {name!r} of {type(model).__name__}: it returns the memory that it was given, or "
            "that the model keeps, and that is changed in place later, which a code of its own would not show. Tap the "
            "module before it, or change the tensor out of place."
        )


def _told(plan: Plan) -> str:
    """Tell what of a model's state moves; where that is nothing, it is none that could be put back."""
    moving = sorted(plan.moving)
    if plan.moves_weights:
        moving.append("weights that learn")
    return f", beside what moves in a pass ({', '.join(moving)})" if moving else ", outside of its modules"


def _run_another(capture: Capture, inputs: Any) -> None:
    """Run another pass, so that anything remembered between calls is of that."""
    args, kwargs = map_tensors(inputs, _other)
    capture.model(*args, **kwargs)
    capture.note_weights()


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
    left = [one.value for entry in capture.records.values() for one in entry.left]
    if any(is_large(tensor) for _, tensor in tensors_in(left)):
        return "it keeps features between modules that their outputs do not show"
    _run_another(capture, inputs)
    with torch.set_grad_enabled(not graphless):
        replayed = _replayed(capture, codes)
    if not same(replayed, expected):
        return "it keeps state between modules that their outputs do not show"
    if capture.plan.late and not graphless and not same(_replayed(capture, codes, detach=True), expected):
        return "what follows the code is computed from state that it keeps"
    if graphless:
        return None
    if gradients is None or not same(_gradients(capture.model, replayed, codes), gradients):
        return "gradients reach it in a way that outputs of modules do not show"
    return None


def _replayed(capture: Capture, codes: list[Tensor], *, detach: bool = False) -> Any:
    """Replay a pass; None where the model misses what a skipped module would have left for it, and raises anything."""
    try:
        return capture.replay(codes, detach=detach)
    except Exception:
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
            if spot.name == name and same(item_at(tree, spot.path), old):  # not another call of the same module
                put[id(item_at(tree, spot.path))] = new
        return map_tensors(tree, lambda t: put[id(t)].clone() if id(t) in put else t)

    with overridden({spot.name: model.get_submodule(spot.name) for spot in spots}, keep):
        gradients = _gradients(model, output, codes)
    if not capture.taps[capture.earliest].grad:
        nodes = ancestors([tensor.grad_fn for _, tensor in tensors_in(output)])
        if any("CheckpointFunction" in type(node).__name__ for node in nodes):
            raise RuntimeError(within_checkpoint(capture, "Tap"))
    if not called:
        return gradients, True
    return gradients, gradients is not None and same(gradients, _gradients(model, output, codes))


def same(a: Any, b: Any) -> bool:
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
    if torch.equal(x, y):
        return True
    if not x.is_floating_point() or not bool(y.isfinite().all()):
        return bool(((x == y) | (x.isnan() & y.isnan())).all())
    tolerance = 1e-2 if x.element_size() < 4 else 1e-5
    return bool((_wide(x) - _wide(y)).norm() <= tolerance * _wide(y).norm())


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _wide(tensor: Tensor) -> Tensor:
    tensor = _real(tensor.detach())
    return tensor if tensor.dtype == torch.float64 else tensor.float()
