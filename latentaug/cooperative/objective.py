"""The objective of cooperative training: its losses, their names and their weights, all checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from numbers import Real
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.checks import shown, tensor
from latentaug.cooperative.backpropagation import Backpropagation
from latentaug.cooperative.eager_losses import Losses
from latentaug.cooperative.given_loss import GivenLoss, OutputLoss
from latentaug.cooperative.labels import squeeze_labels, whole_numbers

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A loss of logits and labels."""

WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "segmentation": 1.0,
        "reconstruction": 0.5,
        "shape_from_logits": 1.0,
        "shape_from_labels": 1.0,
        "hard_image_segmentation": 1.0,
        "hard_image_reconstruction": 0.5,
        "shape_from_hard_image": 1.0,
        "shape_from_hard_segmentation": 1.0,
        "hard_code_segmentation": 0.0,
    }
)
"""The paper's weights, by the names that `CooperativeOutput.losses` has.

"hard_code_segmentation" isn't the paper's: the segmentation loss of what the changed shape codes decode to, whose
gradient reaches decoder and encoder. It is computed only where it has a weight.
"""

HARD = (
    "hard_image_segmentation",
    "hard_image_reconstruction",
    "shape_from_hard_image",
    "shape_from_hard_segmentation",
    "hard_code_segmentation",
)
"""The losses on hard examples."""


class Objective:
    """The loss of segmentations, and what each loss of a step weighs.

    Args:
        weights: Weights that differ from the paper's, by the names of the losses.
        loss: Callable (logits, labels) -> scalar for every segmentation term; see `GivenLoss`. Default:
            `segmentation_loss`.
        ignore_index: Label of pixels that don't count.
        replays: Whether the model learns from changed shape codes themselves unless told otherwise.
        regions: Whether logits are those of regions, which may overlap.

    Raises:
        ValueError: There is no loss of a name, or a weight is negative or not finite.
        TypeError: A weight is no number, or `loss` cannot be called.

    Example:
        >>> objective = Objective({"reconstruction": 0.1}, None, -100)
        >>> objective.weights["reconstruction"], objective.weights["segmentation"]
        (0.1, 1.0)
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None,
        loss: Loss | None,
        ignore_index: int,
        *,
        replays: bool = False,
        regions: bool = False,
    ) -> None:
        if loss is not None and (isinstance(loss, type) or not callable(loss)):
            raise TypeError(f"loss must be a callable (logits, labels) -> scalar; got {shown(loss)}. Pass an instance.")
        default = functools.partial(segmentation_loss, ignore_index=ignore_index, regions=regions)
        given = loss if loss is None or isinstance(loss, OutputLoss) else GivenLoss(loss)
        self.segmentation: Loss = default if given is None else given
        self.ignore_index = ignore_index
        usual = {**WEIGHTS, "hard_code_segmentation": float(replays)}
        self._weights = {**usual, **_checked({} if weights is None else weights)}

    @property
    def weights(self) -> dict[str, float]:
        """Factor of each loss, by name; a copy."""
        return dict(self._weights)

    @weights.setter
    def weights(self, weights: Mapping[str, float]) -> None:
        self._weights = {**self._weights, **_checked(weights)}

    def losses(self, backpropagate: Backpropagation | None = None) -> Losses:
        """Return what adds the losses of one stage up; see `Losses`."""
        return Losses(self._weights, backpropagate)


def _checked(weights: Mapping[str, object]) -> dict[str, float]:
    if unknown := sorted(set(weights) - set(WEIGHTS)):
        raise ValueError(f"weights must name losses; there is no {', '.join(unknown)}, but {', '.join(WEIGHTS)}.")
    checked = {}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise TypeError(f"weights[{name!r}] must be a number; got {weight!r}.")
        checked[name] = float(weight)
        if not 0 <= checked[name] < math.inf:
            raise ValueError(f"weights[{name!r}] must be finite and 0 or more; got {weight}. Pass 0 to leave it out.")
    return checked


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = -100, *, regions: bool = False) -> Tensor:
    """Return the mean cross entropy over labelled pixels; binary where there is one logit, or one for each region.

    Args:
        logits: What the network returns, before softmax or sigmoid.
        labels: Class indices; 0 and 1 where there is one logit, and for each region.
        ignore_index: Label of pixels that don't count. Where none counts, the loss is 0.
        regions: Whether channels are regions, which may overlap, and not classes, of which each pixel has one.

    Shape:
        logits: [B, C, *S].   labels: [B, *S] or [B, 1, *S]; of regions [B, C, *S].   output: a scalar.

    Raises:
        TypeError: The logits are no floating-point tensor, or the labels are no tensor.
        ValueError: The labels' shape doesn't fit the logits'.

    Example:
        >>> segmentation_loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.long))
        tensor(0.6931)
        >>> segmentation_loss(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), -100))
        tensor(0.)
    """
    tensor("logits", logits, who="segmentation_loss")
    if not isinstance(labels, Tensor):
        raise TypeError(f"segmentation_loss needs labels as a tensor; got {shown(labels)}.")
    if regions:
        if labels.shape != logits.shape:
            raise ValueError(
                f"segmentation_loss of regions needs labels of the logits' shape {tuple(logits.shape)}; got "
                f"{tuple(labels.shape)}. Labels of regions are 0 and 1 in a channel for each."
            )
        return _binary(_at_least_float32(logits), whole_numbers(labels), ignore_index)
    labels = whole_numbers(squeeze_labels(labels, logits.ndim - 2))
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"segmentation_loss needs labels of shape {(logits.shape[0], *logits.shape[2:])} for logits of shape "
            f"{tuple(logits.shape)}; got {tuple(labels.shape)}. Labels are class indices, without a channel per class."
        )
    logits = _at_least_float32(logits)
    if logits.shape[1] == 1:
        return _binary(logits.squeeze(1), labels, ignore_index)
    total = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def _binary(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    valid = labels != ignore_index
    targets = labels.where(valid, 0).to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, targets, valid.to(logits.dtype), reduction="sum")
    return total / valid.sum().clamp(min=1)


def reconstruction_loss(
    reconstruction: Tensor, images: Tensor, image_range: tuple[float, float] | None = None
) -> Tensor:
    """Return the mean squared error between a reconstruction and the image it stands for.

    Args:
        reconstruction: What a code decodes to.
        images: What it stands for.
        image_range: Lowest and highest image value, which the error is relative to: images in 0..255 have the loss of
            the same images in 0..1. None for images without bounds, whose error is taken as it is.

    Shape:
        reconstruction, images: [B, C, *S].   output: a scalar.

    Raises:
        TypeError: One is no floating-point tensor.
        ValueError: Their shapes differ, or the range is none.

    Example:
        >>> reconstruction_loss(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5))
        tensor(0.2500)
        >>> reconstruction_loss(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 128.0), image_range=(0, 256))
        tensor(0.2500)
    """
    tensor("reconstruction", reconstruction, who="reconstruction_loss")
    tensor("images", images, who="reconstruction_loss")
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"reconstruction_loss needs a reconstruction of the images' shape {tuple(images.shape)}; got "
            f"{tuple(reconstruction.shape)}."
        )
    span = 1.0 if image_range is None else image_range[1] - image_range[0]
    if not 0 < span < math.inf:
        raise ValueError(f"image_range must be two finite numbers, the lower one first; got {image_range}.")
    loss = F.mse_loss(_at_least_float32(reconstruction), _at_least_float32(images))
    return loss if span == 1 else loss / span**2


def _at_least_float32(values: Tensor) -> Tensor:
    """Sums over an image's pixels need more than half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
