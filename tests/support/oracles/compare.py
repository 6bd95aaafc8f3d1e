"""A transform held against a loop: values and gradients, for a code in any layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.base import Change, LatentTransform
from tests.support.codes import Kind, seeded

Expected = Callable[[Tensor, Kind, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Oracle:
    """How to make an instance of a transform, and the loop for it."""

    make: Callable[[], LatentTransform]
    expected: Expected


@dataclass(frozen=True)
class Errors:
    """The largest differences between a transform and a loop, and the change that was made."""

    values: float
    gradients: float
    change: Change


def saliency_of(kind: Kind, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the saliency that every transform which asks for one is given."""
    return kind.code(seed=2, dtype=dtype)


def loss_of(kind: Kind) -> Callable[[Tensor], Tensor]:
    """Return a loss with another gradient at every entry, prefix tokens included, which grows with the code."""
    weight = kind.code(seed=9)
    return lambda code: (weight.to(code.dtype) * code).tanh().mean() + code.square().mean() / 10


def divergence_of(kind: Kind) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return a divergence from the code, of second order in what is added as all are, and the root of its curvature."""
    code, factor = kind.code(), 1 + kind.code(seed=3).abs()
    return lambda new: (factor * (new - code)).square().sum(), factor


def errors(transform: LatentTransform, expected: Expected, kind: Kind) -> Errors:
    """Compare a transform with a loop in float64: values, and the gradient of a weighted sum with respect to the code.

    Differences are relative to the largest number that is expected.
    """
    code = kind.code().requires_grad_()
    change = transform(
        code,
        saliency_of(kind),
        layout=kind.layout,
        generator=seeded(),
        loss_at=loss_of(kind),
        divergence_at=divergence_of(kind)[0],
    )
    ours, theirs = change.apply(code), expected(code, kind, change.params)
    weight = kind.code(seed=1)
    ours_back, theirs_back = (torch.autograd.grad((one * weight).sum(), code)[0] for one in (ours, theirs))
    return Errors(_off(ours, theirs), _off(ours_back, theirs_back), change)


def _off(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300))
