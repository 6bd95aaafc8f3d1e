"""How well a model segments, and how hard its hard segmentations are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cardiac.data.batches import Batch
from cardiac.data.readers import STRUCTURES
from cardiac.run.metrics import dice
from cardiac.run.scores import mean_of_known
from latentaug import CooperativeModel


@torch.no_grad()
def dice_of(model: nn.Module, volumes: Sequence[Batch]) -> float:
    """Return the mean Dice of what a model in eval mode segments."""
    return mean_dice([model(images).argmax(1) for images, _ in volumes], volumes)


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
    return mean_dice(own, volumes), mean_dice(hard, volumes)


def mean_dice(predicted: Sequence[Tensor], volumes: Sequence[Batch]) -> float:
    """Average the 3-D Dice of label maps over volumes and structures, without those that neither side has."""
    pairs = [(one, labels) for one, (_, labels) in zip(predicted, volumes, strict=True)]
    structures = range(1, 1 + len(STRUCTURES))
    return mean_of_known(dice(one, labels, value) for one, labels in pairs for value in structures)
