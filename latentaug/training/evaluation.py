"""Scores of a model over a loader: losses, and overlaps of its own segmentation and of the refined one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from latentaug import ranks
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.output import CooperativeOutput
from latentaug.tracing.keeping import is_spread
from latentaug.training.finite import all_finite
from latentaug.training.metrics import Overlap, RegionOverlap, add_to, means_of, over_ranks
from latentaug.training.plain import plain_tensor

logger = logging.getLogger(__name__)


def evaluate(
    model: CooperativeModel,
    batches: Iterable[tuple[Tensor, Tensor] | None],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> dict[str, float]:
    """Score a model in eval mode, in which it is put; on all ranks together, with the buffers of rank 0.

    Args:
        model: The model.
        batches: Images and labels, on the device; None where only other ranks have some.
        device: Where they are.
        autocast: Makes the context for a forward pass.

    Returns:
        See `CooperativeTrainer.evaluate`.

    Raises:
        ValueError: There is no batch on any rank.
    """
    overlaps = overlaps_of(model, device)
    sums: dict[str, Tensor] = {}
    samples, finite = 0, list[Tensor]()
    model.eval()
    ranks.take_from_first(
        "buffers to score with", model.buffers()
    )  # running statistics differ, and those of rank 0 are saved
    gathers = is_spread(model)
    last: tuple[Tensor, Tensor] | None = None
    for batch in batches:
        if batch is None:
            if gathers and last is not None:  # other ranks wait for this one's part of the weights
                with autocast():
                    model(*last)
            continue
        images, labels = last = batch
        with autocast():
            output = model(images, labels)
        for overlap, logits in zip(overlaps, (output.logits, output.refined), strict=True):
            overlap.add(logits, labels)
        add_to(sums, losses_of(output), weight=len(images))
        samples += len(images)
        finite.append(all_finite(output.loss))
    sums, total = over_ranks("losses of an evaluation", sums, samples)
    if int(total) == 0:
        raise ValueError("evaluate needs a loader that yields at least one batch; got an empty one.")
    if finite:
        _tell_of_lost(torch.stack(finite).tolist())
    for overlap in overlaps:
        overlap.counts = sum(ranks.gathered("overlaps", overlap.counts.cpu()), torch.zeros((), dtype=torch.long))
    return means_of(sums, total) | scores_of(overlaps)


def overlaps_of(model: CooperativeModel, device: torch.device | str = "cpu") -> list[Overlap]:
    """Return what counts for the model's own segmentation, and for the refined one."""
    kind = RegionOverlap if model.regions else Overlap
    return [kind(model.num_classes, model.ignore_index, device) for _ in range(2)]


def scores_of(overlaps: Sequence[Overlap]) -> dict[str, float]:
    """Return the scores of both, by name."""
    own, refined = overlaps
    return own.scores() | {f"refined_{name}": score for name, score in refined.scores().items()}


def losses_of(output: CooperativeOutput) -> dict[str, Tensor]:
    """Return the total and every term, without a graph, whatever kind of tensor the images were."""
    return {name: plain_tensor(loss.detach()) for name, loss in {"loss": output.loss, **output.losses}.items()}


def tell_of_no_score(epoch: int, monitor: str) -> None:
    """Say that an epoch can't be the best one, nor a bad one."""
    logger.warning(
        "Epoch %d: %s, which is monitored, is no number: none of its classes is labelled or predicted in validation. "
        "The epoch counts neither as the best one nor for a schedule. Look at the labels, or monitor another.",
        epoch,
        monitor,
    )


def _tell_of_lost(finite: Sequence[bool]) -> None:
    """Say which batches of an evaluation have a loss that is not finite."""
    lost = [str(number) for number, one in enumerate(finite) if not one]
    if lost:
        logger.warning(
            "evaluate: the loss of %d of %d batches is infinite or not a number, counted from 0: %s. Look at them.",
            len(lost),
            len(finite),
            ", ".join(lost[:5]) + (", …" if len(lost) > 5 else ""),
        )
