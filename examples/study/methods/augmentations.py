"""Augmentation of images that any method can be trained with, beside what all have in common: `--augment`.

Each changes some slices of a batch, scales every slice to 0..1 again, and moves nothing, so that labels stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latentaug import GIN, LatentTransform, RandConv, StrongIntensity
from study.data.augment import rescale
from study.methods.method import Transform
from study.methods.transforms import CHANGED, bias_field

NONE = "none"
STRONG = StrongIntensity(
    noise=0.5, blur=0.5, brightness=0.5, contrast=0.5, resolution=0.25, inverted_gamma=0.15, gamma=0.5
)
"""All parts two to five times as often as nnU-Net has them, but for the low resolution."""


def rescaled(transform: LatentTransform) -> Transform:
    """Return a transform of the library as one of slices in 0..1."""

    def changed(images: Tensor, generator: torch.Generator) -> Tensor:
        return rescale(transform.augment(images, generator=generator))

    return changed


AUGMENTATIONS: Mapping[str, Transform | None] = {
    NONE: None,
    "strong": rescaled(STRONG),
    "nnunet": rescaled(StrongIntensity()),
    "bias-field": bias_field,
    "randconv": rescaled(RandConv(p=CHANGED)),
    "gin": rescaled(GIN(p=CHANGED)),
}
"""What `--augment` may say."""
