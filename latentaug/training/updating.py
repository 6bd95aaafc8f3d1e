"""Updates of weights, each along the mean gradient of a group of batches and of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from latentaug import ranks
from latentaug.checks import shown
from latentaug.cooperative.averaging import average_gradients, is_averaged_by_wrapper
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.training.average import Average
from latentaug.training.checkpoint import Position
from latentaug.training.evaluation import losses_of
from latentaug.training.finite import FiniteGuard, Watched, may_look
from latentaug.training.metrics import add_to
from latentaug.training.optimization import Optimization


class TrainingStep(Protocol):
    """Fills `.grad` of a model's parameters from one batch, as `cooperative_backward` does."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        scaler: torch.amp.GradScaler | None,
        generator: torch.Generator | None,
    ) -> CooperativeOutput:
        """Run forward and backward; leave the optimizer alone."""


class Batch(NamedTuple):
    """Images and labels, checked, and which of them were found lost, so that no model sees them."""

    images: Tensor
    labels: Tensor
    lost: list[str]


class Updates:
    """Update weights from batches.

    Args:
        step: What fills the gradients from a batch.
        optimization: What makes updates of them.
        guard: Keeps out what is not finite.
        average: The average of the weights, if there is one.
        generator: What the step draws from.
    """

    def __init__(
        self,
        step: TrainingStep,
        optimization: Optimization,
        guard: FiniteGuard,
        average: Average | None,
        generator: torch.Generator | None,
    ) -> None:
        # Averaged over ranks once for an update, below.
        own = step is cooperative_backward or step is standard_backward
        made: Any = step
        self._step: TrainingStep = partial(made, average=False) if own else step
        self._optimization, self._guard, self._average, self._generator = optimization, guard, average, generator

    def __call__(self, model: nn.Module, group: Sequence[Batch], position: Position) -> dict[str, Tensor]:
        """Update the weights with the mean gradient of a group of batches; return the losses of the last.

        Batches that are not finite are left out; without any other there is no update, and nothing is returned.

        Args:
            model: The model, also wrapped.
            group: Batches, on any device.
            position: Where training is; it moves on.
        """
        optimization, sums = self._optimization, dict(position.sums)
        optimization.optimizer.zero_grad(set_to_none=True)
        last: dict[str, Tensor] = {}
        count: int | Tensor = 0
        for number, (images, labels, lost) in enumerate(group, position.batches):
            if lost:
                self._guard.refuse(position.epoch + 1, number, lost)
                continue
            images, labels = (one.to(optimization.device, non_blocking=True) for one in (images, labels))
            watched = Watched(self._guard, model, accumulated=len(group) > 1, scaler=optimization.scaler)
            with optimization.autocast():
                output = self._step(model, images, labels, scaler=optimization.scaler, generator=self._generator)
            losses = losses_of(_checked(output, optimization.model))
            finite = watched.settle(position.epoch + 1, number, None if may_look(images) else images, losses)
            if finite is not False:
                last = losses
                count = count + finite
                add_to(sums, losses if finite is True else {k: v.where(finite, 0) for k, v in losses.items()})
        if last:
            if ranks.several() and not is_averaged_by_wrapper(model):
                average_gradients(model)
            optimization.update(count if len(group) > 1 else 1)
            if self._average is not None:
                self._average.update(optimization.model)
            position.step += 1
            position.sums = sums
            position.counted = position.counted + count
        position.batches += len(group)
        return last


def _checked(output: object, model: nn.Module) -> CooperativeOutput:
    """See that a step is one.

    Raises:
        TypeError: It returned something else than losses.
        RuntimeError: It filled no gradient: nothing would be trained.
    """
    if not (isinstance(getattr(output, "loss", None), Tensor) and isinstance(getattr(output, "losses", None), Mapping)):
        raise TypeError(
            f"step must return a CooperativeOutput, as cooperative_backward does; got {shown(output)}. Return what the "
            "model does."
        )
    if all(parameter.grad is None for parameter in model.parameters()):
        raise RuntimeError("step must fill the gradients; all are None. Call output.loss.backward() in it.")
    return cast(CooperativeOutput, output)
