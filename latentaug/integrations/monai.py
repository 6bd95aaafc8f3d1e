"""MONAI: what a `SupervisedTrainer` needs to train a `CooperativeModel`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward
from latentaug.training.evaluation import losses_of
from latentaug.training.finite import FiniteGuard, Watched, has_gradient


def prepare_batch(
    batch: Any, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple[Tensor], dict[str, Any]]:
    """Hand the labels to the model as well: for `SupervisedTrainer(prepare_batch=...)`.

    By itself it makes MONAI's own iteration train a `CooperativeModel`: `loss_function=lambda output, labels:
    output.loss`, and `decollate=False`, as what the model returns is no batch. With `iteration_update` that takes less
    memory, and the predictions are logits.

    Args:
        batch: A pair (images, labels), or a mapping with "image" and "label".
        device: Where to bring them.
        non_blocking: Whether the host may go on meanwhile.
        kwargs: Further arguments of `Tensor.to`.

    Raises:
        ValueError: There are no labels.
    """
    from monai.engines.utils import default_prepare_batch

    found = default_prepare_batch(batch, device, non_blocking, **kwargs)
    images, labels = found if isinstance(found, tuple) else (found, None)
    if labels is None:
        raise ValueError('Cooperative training needs labels; got a batch without "label". Check the keys of the data.')
    return images, labels, (labels,), {}


def iteration_update(engine: Any, batch: Any) -> dict[str, Any]:
    """Train on a batch by `cooperative_backward`: for `SupervisedTrainer(iteration_update=...)`.

    Accumulation, AMP with its scaler, and the events of an iteration are those of MONAI's own. `engine.state.output`
    holds images, labels, the logits and the loss; `engine.state.losses` each loss by name. The trainer's loss function
    and inferer aren't called: losses are the model's.

    A batch whose images, losses or gradients are infinite or not a number is kept out of weights and running
    statistics, and the log names it, as in `CooperativeTrainer`. On the CPU it leaves no gradient, and without any
    there is no step. After ten in a row training stops.

    Args:
        engine: A `SupervisedTrainer` of MONAI 1.5 or newer, whose network is a `CooperativeModel`, also wrapped by DDP.
        batch: What its loader yields.

    Returns:
        What `engine.state.output` is.

    Raises:
        NotFiniteError: Too many batches in a row were not finite.
    """
    from monai.engines.utils import IterationEvents
    from monai.utils.enums import CommonKeys

    images, labels, *_ = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
    engine.state.output = {CommonKeys.IMAGE: images, CommonKeys.LABEL: labels}
    place = _place(engine)
    engine.network.train()
    if place.first:
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
    scaler, guard = engine.scaler if engine.amp else None, _guard_of(engine)
    watched = Watched(guard, engine.network, accumulated=not place.first, scaler=scaler)
    with torch.autocast("cuda", **engine.amp_kwargs) if engine.amp else nullcontext():
        output: CooperativeOutput = cooperative_backward(
            engine.network, images, labels, scaler=scaler, scale=1 / place.batches
        )
    engine.state.output[CommonKeys.PRED], engine.state.output[CommonKeys.LOSS] = output.logits, output.loss
    engine.state.losses = output.losses
    watched.settle(engine.state.epoch, place.number, images, losses_of(output))
    guard.check(images)
    for event in (
        IterationEvents.FORWARD_COMPLETED,
        IterationEvents.LOSS_COMPLETED,
        IterationEvents.BACKWARD_COMPLETED,
    ):
        engine.fire_event(event)
    if place.last and has_gradient(engine.network):
        if scaler is None:
            engine.optimizer.step()
        else:
            scaler.step(engine.optimizer)
            scaler.update()
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    if place.ends:
        guard.end_epoch(engine.state.epoch, place.number + 1)
        guard.check()
    found: dict[str, Any] = engine.state.output
    return found


class _Place(NamedTuple):
    """Where a batch is in its epoch, and among those whose gradients are accumulated."""

    number: int
    first: bool
    last: bool
    ends: bool
    batches: int


def _place(engine: Any) -> _Place:
    """Return it as MONAI counts: anew in each epoch, whose last batch ends it."""
    batches, length = getattr(engine, "accumulation_steps", 1), engine.state.epoch_length
    done = engine.state.iteration - 1
    done = done if length is None else done % length
    ends = done + 1 == length
    return _Place(done, done % batches == 0, (done + 1) % batches == 0 or ends, ends, batches)


def _guard_of(engine: Any) -> FiniteGuard:
    """Return what counts the batches of a trainer that are not finite; it lives as long as the trainer."""
    if not hasattr(engine, "latentaug_guard"):
        engine.latentaug_guard = FiniteGuard()
    guard: FiniteGuard = engine.latentaug_guard
    if engine.state.iteration == 1:
        guard.begin()
    return guard
