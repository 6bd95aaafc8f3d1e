"""Plain functions on images, logits and label maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def crop(image: Tensor, size: Sequence[int]) -> Tensor:
    """Cut off what lies beyond `size`, at the end of every spatial axis."""
    for axis, length in enumerate(size, start=2):
        image = image.narrow(axis, 0, length)
    return image


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate to `size` linearly, if the image doesn't have it."""
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode=_INTERPOLATION[len(size)])


def scaled_by(size: Sequence[int], scale: float) -> tuple[int, ...]:
    """Return a size `scale` times as large along each axis, 1 at least.

    Example:
        >>> scaled_by((80, 81), 0.5)
        (40, 40)
    """
    return tuple(max(1, round(scale * n)) for n in size)


def shrink(images: Tensor, size: Sequence[int]) -> Tensor:
    """Average images or logits [B, C, *S] down to `size`, if they are larger."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    precise = torch.promote_types(images.dtype, torch.float32)  # half precision is not averaged everywhere
    return F.interpolate(images.to(precise), tuple(size), mode="area").to(images.dtype)


def to_probabilities(logits: Tensor, *, regions: bool = False) -> Tensor:
    """Apply the softmax over classes, or the sigmoid where there is one logit only, or one for each region."""
    return logits.sigmoid() if regions or logits.shape[1] == 1 else logits.softmax(dim=1)


def to_labels(logits: Tensor, *, regions: bool = False) -> Tensor:
    """Return the label map that logits stand for; with one logit, or one for each region, 1 where it is positive.

    Shape:
        logits: [B, C, *S].   output: [B, *S]; of regions [B, C, *S].

    Example:
        >>> logits = torch.tensor([[[2.0, -1.0], [3.0, 1.0]]])
        >>> to_labels(logits), to_labels(logits, regions=True)
        (tensor([[1, 1]]), tensor([[[1, 0], [1, 1]]]))
    """
    if regions:
        return (logits > 0).long()
    return (logits > 0).squeeze(1).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def one_hot(
    labels: Tensor, num_classes: int, *, ignore_index: int = -100, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Write a label map as probabilities, with zeros where the label is to be ignored.

    Args:
        labels: Class indices, or 0 and 1 where there is one class only.
        num_classes: Channels of the result; 1 gives the binary label itself.
        ignore_index: Label of pixels that belong to no class.
        dtype: What the result is made of.

    Shape:
        labels: [B, *S].   output: [B, num_classes, *S], contiguous.

    Example:
        >>> one_hot(torch.tensor([[0, 2, -100]]), num_classes=3)
        tensor([[[1., 0., 0.],
                 [0., 0., 0.],
                 [0., 1., 0.]]])
    """
    first = 1 if num_classes == 1 else 0
    classes = torch.arange(first, first + num_classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    # Compared in place of F.one_hot, whose channels-last result would change the memory layout of one branch only.
    hits = (labels.unsqueeze(1) == classes) & (labels != ignore_index).unsqueeze(1)
    return hits.to(dtype)
