"""Comparisons: each must notice what it is there to notice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.support.compare import close, gradients, same


def test_same_and_close_notice_the_smallest_difference() -> None:
    a = torch.ones(3, dtype=torch.float64)
    assert same({"a": [a]}, {"a": [a.clone()]})
    assert not same(a, a + 1e-15)
    assert not same(a, [a, a])
    assert not same([], [])
    assert close([a, None], [a, torch.zeros(3)])
    assert not close([a], [a + 1e-9])
    assert not close([a], [None])
    assert not close([a], [])


def test_another_shape_is_neither_the_same_nor_close() -> None:
    assert not same(torch.ones(3), torch.ones(1, 3))
    assert not close([torch.ones(3)], [torch.ones(1)])
    assert not close([torch.ones(1)], [torch.ones(3)])


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_close_to_nothing(number: float) -> None:
    wrong, right = torch.full((3,), number), torch.ones(3)
    assert not close([wrong], [right])
    assert not close([right], [wrong])
    assert not close([right, wrong], [right, wrong])
    assert not close([wrong], [None])


def test_one_wrong_gradient_is_noticed_among_large_ones() -> None:
    large, small = torch.full((2,), 1e3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    assert close([large, small], [large, small])
    assert not close([large, small + 1e-9], [large, small])


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 3).double()


def test_gradients_see_every_output_and_where_in_it_a_number_stands() -> None:
    model, x = line(), torch.randn(2, 3, dtype=torch.float64)
    expected = gradients(model, {"a": model(x), "b": [model(2 * x)]})
    assert close(gradients(model, {"a": model(x), "b": [model(2 * x)]}), expected)
    for wrong in (
        {"a": model(x)},
        {"a": model(x), "b": [model(2 * x).detach()]},
        {"a": model(x), "b": [-model(2 * x) + 1e-6]},
        {"a": model(x).flip(0), "b": [model(2 * x)]},
    ):
        assert not close(gradients(model, wrong), expected)


def test_gradients_tell_a_weight_that_has_no_part_in_the_output() -> None:
    model, code = nn.ModuleDict({"used": line(), "unused": line()}), torch.ones(1, 3, dtype=torch.float64)
    code.requires_grad_()
    found: list[Tensor | None] = gradients(model, model["used"](code), [code])
    assert [gradient is None for gradient in found] == [False, False, True, True, False]
    assert not gradients(model.requires_grad_(False), model["used"](code.detach()))
