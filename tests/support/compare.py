"""Whether two results are the same, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.trees import leaves


def same(a: Any, b: Any) -> bool:
    """Tell whether two trees hold bitwise the same numbers."""
    left, right = list(leaves(a)), list(leaves(b))
    return len(left) == len(right) > 0 and all(
        x.shape == y.shape and torch.equal(x, y) for x, y in zip(left, right, strict=True)
    )


def close(a: list[Tensor | None], b: list[Tensor | None], tolerance: float = 1e-11) -> bool:
    """Tell whether two lists of gradients agree; a missing one is a zero.

    Where a gradient is zero in exact arithmetic, as that of a bias before a normalisation, rounding is relative to the
    terms of its sum, which are as large as other gradients.
    """
    if len(a) != len(b):
        return False
    floor = max(1.0, 1e-3 * max((float(t.detach().norm()) for t in b if t is not None), default=0.0))
    for x, y in zip(a, b, strict=True):
        if x is not None and y is not None and x.shape != y.shape:
            return False
        x, y = (torch.zeros(()) if t is None else t.detach() for t in (x, y))
        # Written so that neither a NaN nor an infinity is close to anything.
        if not float((x - y).norm()) <= tolerance * max(floor, float(y.norm())) < math.inf:
            return False
    return True


def gradients(model: nn.Module, output: Any, more: Sequence[Tensor] = ()) -> list[Tensor | None]:
    """Return the gradient of an objective that sees every output, by every parameter that wants one, and by `more`."""
    wanted = [*(parameter for parameter in model.parameters() if parameter.requires_grad), *more]
    terms = [t for t in leaves(output) if t.requires_grad]
    if not wanted or not terms:
        return []
    objective = torch.stack([(t * torch.linspace(-1, 1, t.numel()).reshape(t.shape)).square().sum() for t in terms])
    return list(torch.autograd.grad(objective.sum(), wanted, retain_graph=True, allow_unused=True))
