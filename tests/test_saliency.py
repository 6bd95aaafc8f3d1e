"""Saliency: the signed gradient of a loss by a code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.saliency import latent_saliency


def test_saliency_is_the_signed_gradient() -> None:
    code = torch.tensor([[1.0, -2.0], [3.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[2.0, -1.0], [0.5, 4.0]])
    saliency = latent_saliency((code**2 * weight).sum(), code)
    assert torch.equal(saliency, 2 * code.detach() * weight)
    assert not saliency.requires_grad
    assert code.grad is None


def test_a_list_of_codes_gives_a_list() -> None:
    codes = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    loss = (codes[0].sum() * codes[1].sum()).square()
    found = latent_saliency(loss, codes)
    assert isinstance(found, list)
    assert [one.tolist() for one in found] == [[36.0] * 2, [24.0] * 3]


def test_the_graph_stays_for_the_backward_pass() -> None:
    weight = torch.ones(3, requires_grad=True)
    code = weight * 2
    loss = code.square().sum()
    latent_saliency(loss, code)
    latent_saliency(loss, code)
    loss.backward()
    assert torch.equal(weight.grad, torch.full((3,), 8.0))


def test_small_gradients_survive_float16() -> None:
    """Straight through float16, gradients of 3e-8 and 4e-8 would be the same number."""
    code = torch.ones(2, dtype=torch.float16, requires_grad=True)
    factors = torch.tensor([3e-8, 4e-8])
    saliency = latent_saliency((code.float() * factors).sum(), code)
    assert saliency.dtype == torch.float32
    assert torch.allclose(saliency, factors, rtol=1e-3, atol=0)
    (naive,) = torch.autograd.grad((code.float() * factors).sum(), code)
    assert naive[0] == naive[1]


def test_float16_beside_float32_codes() -> None:
    half, single = torch.ones(2, dtype=torch.float16, requires_grad=True), torch.ones(2, requires_grad=True)
    found = latent_saliency((half.float() * single * 3).sum(), [half, single])
    assert [one.dtype for one in found] == [torch.float32, torch.float32]
    assert all(torch.equal(one, torch.full((2,), 3.0)) for one in found)


def test_half_losses_are_scaled_in_float32() -> None:
    code = torch.ones(2, dtype=torch.float16, requires_grad=True)
    saliency = latent_saliency((code * 0.5).sum() + 100, code)  # 2^12 times this loss is no float16
    assert torch.equal(saliency, torch.full((2,), 0.5))


def freed() -> tuple[Tensor, Tensor]:
    code = torch.ones(2, requires_grad=True)
    loss = (code * code).sum()
    loss.backward()
    return loss, code


def in_place() -> tuple[Tensor, Tensor]:
    code = torch.ones(2, requires_grad=True)
    hidden = code.exp()
    loss = hidden.square().sum()
    hidden.mul_(2)
    return loss, code


CODE = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("loss", "code", "error", "match"),
    [
        (CODE * 2, CODE, ValueError, r"needs `loss` to be a scalar; got shape \(2,\)"),
        (torch.ones(()), CODE, RuntimeError, r"with a graph; got one that requires no gradient. .* torch.no_grad\(\)"),
        (CODE.sum(), torch.ones(2, requires_grad=True), RuntimeError, "The loss does not depend on it: pass tap.code"),
        (CODE.sum(), torch.ones(2), RuntimeError, "The loss does not depend on it: pass tap.code"),
        (*freed(), RuntimeError, r"freed by a backward pass: take the saliency before loss.backward\(\)"),
        (*in_place(), RuntimeError, "modified by an inplace operation"),
        (CODE.sum(), [], ValueError, r"needs one `code` at least; got an empty list"),
        (CODE.sum(), None, TypeError, r"needs a `code`, a tensor or a list of them; got None"),
        (CODE.sum(), [CODE, 3], TypeError, r"needs a `code`, a tensor or a list of them; got 3"),
    ],
    ids=["vector", "no graph", "other code", "no grad", "freed", "in place", "no code", "none", "a number"],
)
def test_what_cannot_be_differentiated_says_why(loss: Tensor, code: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        latent_saliency(loss, code)


# The calculator ---------------------------------------------------------------------------------------------------
