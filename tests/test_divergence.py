"""The divergence of predictions, against a loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from latentaug.divergence import kl_divergence


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 4, 2, 3, 2), (2, 1, 4, 5)])
def test_agrees_with_a_loop(shape: tuple[int, ...]) -> None:
    logits, clean = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)

    def probabilities(one: torch.Tensor) -> list[float]:
        values = one.tolist() if len(one) > 1 else [*one.tolist(), 0.0]
        total = sum(math.exp(value) for value in values)
        return [math.exp(value) / total for value in values]

    total, count = 0.0, 0
    rows = logits.movedim(1, -1).reshape(-1, shape[1]), clean.movedim(1, -1).reshape(-1, shape[1])
    for got, expected in zip(*rows, strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(probabilities(expected), probabilities(got), strict=True))
        count += 1
    assert kl_divergence(logits, clean).item() == pytest.approx(total / count)


def test_is_zero_for_the_same_and_gradients_reach_the_changed_alone() -> None:
    logits, clean = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    assert kl_divergence(logits, logits) == 0
    kl_divergence(logits, clean).backward()
    assert logits.grad is not None
    assert logits.grad.any()
    assert clean.grad is None


def test_half_precision_is_summed_in_float32() -> None:
    logits, clean = torch.randn(2, 3, 400).half(), torch.randn(2, 3, 400).half()
    divergence = kl_divergence(logits, clean)
    assert divergence.dtype == torch.float32
    torch.testing.assert_close(divergence, kl_divergence(logits.float(), clean.float()))


def test_certain_predictions_stay_finite() -> None:
    logits = torch.tensor([[[1e4], [-1e4]]], requires_grad=True)
    divergence = kl_divergence(logits, -logits.detach())
    divergence.backward()
    assert divergence.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kl_divergence needs logits of one shape; got \(1, 2, 3\) and \(1, 2, 4\)"):
        kl_divergence(torch.ones(1, 2, 3), torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match=r"kl_divergence needs logits \[B, K, \*S\]; got shape \(3,\)"):
        kl_divergence(torch.ones(3), torch.ones(3))


def test_what_are_no_tensors_is_refused() -> None:
    logits: Any = [[1.0, 2.0]]
    with pytest.raises(TypeError, match=r"kl_divergence needs a tensor as logits; got \[\[1.0, 2.0\]\]"):
        kl_divergence(logits, torch.ones(1, 2))
    with pytest.raises(TypeError, match=r"kl_divergence needs a tensor as clean; got \[\[1.0, 2.0\]\]"):
        kl_divergence(torch.ones(1, 2), logits)
