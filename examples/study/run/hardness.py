"""How well a model segments, and how hard its hard segmentations are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentaug import CooperativeModel
from study.data.batches import Batch
from study.run.metrics import dice
from study.run.scores import mean_of_known


@torch.no_grad()
def dice_of(model: nn.Module, volumes: Sequence[Batch]) -> float:
    """Return the mean Dice of what a model in eval mode segments."""
    logits = [model(images) for images, _ in volumes]
    return mean_dice([found.argmax(1) for found in logits], volumes, logits[0].shape[1])


def dice_of_masked(model: CooperativeModel, volumes: Sequence[Batch], *, seed: int = 0) -> tuple[float, float]:
    """Return the mean Dice of what a model segments, and of what its masked shape codes decode to.

    Args:
        model: Any model, also one that was trained without hard examples.
        volumes: Slices of a volume with their labels, each.
        seed: Of the masks.
    """
    generator = torch.Generator().manual_seed(seed)
    both = []
    for images, labels in volumes:
        explained = model.explain(images, labels, generator=generator)
        both.append((explained.logits.argmax(1), explained.hard_segmentation.argmax(1)))
    own, hard = zip(*both, strict=True)
    classes = explained.logits.shape[1]
    return mean_dice(own, volumes, classes), mean_dice(hard, volumes, classes)


def mean_dice(predicted: Sequence[Tensor], volumes: Sequence[Batch], classes: int) -> float:
    """Average the 3-D Dice of label maps over volumes and structures, without those that neither side has."""
    pairs = [(one, labels) for one, (_, labels) in zip(predicted, volumes, strict=True)]
    structures = range(1, classes)
    return mean_of_known(dice(one, labels, value) for one, labels in pairs for value in structures)
