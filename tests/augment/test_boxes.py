"""Boxes: of the size asked for, within the code, each as likely, and found again position by position."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from latentaug.augment.base import Context
from latentaug.augment.boxes import inside, sampled_boxes
from latentaug.layout import CHANNELS_FIRST
from tests.support.codes import seeded


def context_of(seed: int = 0) -> Context:
    code = torch.ones(2, 3, 4)
    return Context("Test", code, code, CHANNELS_FIRST, seeded(seed), {})


@pytest.mark.parametrize("size", [(9,), (5, 7), (1, 7), (3, 4, 5)])
@pytest.mark.parametrize("side", [0.0, 0.25, 0.5, 0.99, 1.0])
def test_boxes_have_their_size_and_lie_within(size: tuple[int, ...], side: float) -> None:
    boxes = sampled_boxes(size, torch.full((200,), side), context_of())
    assert boxes.shape == (200, 2, len(size))
    for axis, n in enumerate(size):
        first, behind = boxes[:, 0, axis], boxes[:, 1, axis]
        assert ((behind - first) == max(1, math.ceil(side * n))).all()
        assert set(first.tolist()) == set(range(n - max(1, math.ceil(side * n)) + 1))
        assert int(behind.max()) == n


def test_a_side_that_rounding_makes_more_than_all_is_all() -> None:
    assert sampled_boxes((5, 7), torch.full((3,), 1.0000001), context_of()).tolist() == [[[0, 0], [5, 7]]] * 3


def test_every_place_is_as_likely() -> None:
    first = sampled_boxes((8,), torch.full((6000,), 0.25), context_of())[:, 0, 0]
    counts = torch.bincount(first)
    assert len(counts) == 7
    assert all(abs(int(count) - 6000 / 7) < 4 * math.sqrt(6000 / 7 * 6 / 7) for count in counts)


def test_axes_are_placed_each_by_itself() -> None:
    first = sampled_boxes((9, 9), torch.full((2000,), 0.5), context_of())[:, 0].double()
    assert abs(float(torch.corrcoef(first.T)[0, 1])) < 4 / math.sqrt(2000)


@pytest.mark.parametrize("size", [(9,), (5, 7), (3, 4, 5)])
def test_positions_are_in_their_sample_s_box_or_not(size: tuple[int, ...]) -> None:
    boxes = sampled_boxes(size, torch.rand(6, generator=seeded(1)), context_of())
    found = inside(boxes, size)
    assert found.shape == (6, 1, *size)
    for i, place in itertools.product(range(6), itertools.product(*map(range, size))):
        expected = all(boxes[i, 0, axis] <= at < boxes[i, 1, axis] for axis, at in enumerate(place))
        assert bool(found[(i, 0, *place)]) is bool(expected)
    assert found.any()
    assert not found.all()
