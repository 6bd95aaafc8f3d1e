"""Boxes of spatial positions, sampled for each sample of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentaug.augment.base import Context


def sampled_boxes(size: Sequence[int], sides: Tensor, context: Context) -> Tensor:
    """Sample where boxes are that lie within a code, and return the first position and the one behind the last.

    Args:
        size: Number of positions along each of the n axes of a code.
        sides: Fraction of each axis that a box takes, in [0, 1]; rounded up, to one position at least.
        context: Source of the random numbers.

    Shape:
        sides: [B].   result: [B, 2, n], whole numbers.
    """
    lengths = torch.stack([(sides * n).ceil().long().clamp(1, n) for n in size], 1)
    last = torch.stack([n - length for n, length in zip(size, lengths.unbind(1), strict=True)], 1)
    places = context.rand(len(sides), len(size)) * (last + 1)
    first = torch.minimum(places.long(), last)  # a product with a number below 1 may round up to it
    return torch.stack([first, first + lengths], 1)


def inside(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Say of each position whether it is in the box of its sample.

    Shape:
        boxes: [B, 2, n].   result: [B, 1, *S], True or False.
    """
    within = torch.ones((), dtype=torch.bool, device=boxes.device)
    for axis, n in enumerate(size):
        shape = [-1, 1, *[1] * len(size)]
        first, behind = (boxes[:, end, axis].view(shape) for end in (0, 1))
        place = torch.arange(n, device=boxes.device).view([n if one == axis else 1 for one in range(len(size))])
        within = within & (place >= first) & (place < behind)
    return within
