"""Layouts and strides, read off shapes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, TOKENS, Layout
from latentaug.tracing.infer_layout import infer_layout

SIZES = st.lists(st.sampled_from([32, 48, 64, 80, 96]), min_size=1, max_size=3).map(tuple)
STRIDES = st.sampled_from([2, 4, 8, 16])


@given(SIZES, STRIDES, st.integers(1, 4), st.integers(100, 700))
def test_channels_first_is_read_off_the_shape(size: tuple[int, ...], stride: int, batch: int, channels: int) -> None:
    """Strided convolutions round up."""
    shape = (batch, channels, *(-(-s // stride) for s in size))
    assert infer_layout(shape, (batch, 3, *size)) == (CHANNELS_FIRST, (stride,) * len(size))


@given(SIZES, STRIDES, st.integers(1, 4), st.integers(100, 700))
def test_channels_last_is_read_off_the_shape(size: tuple[int, ...], stride: int, batch: int, channels: int) -> None:
    if len(size) == 1:
        return  # [B, N, C]: tokens
    shape = (batch, *(s // stride for s in size), channels)
    assert infer_layout(shape, (batch, 3, *size)) == (CHANNELS_LAST, (stride,) * len(size))


@given(
    st.sampled_from([(32, 32), (64, 64), (32, 64), (32, 32, 32)]),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([0, 1, 2]),
    st.integers(300, 700),
)
def test_tokens_are_read_off_their_number(size: tuple[int, ...], stride: int, prefix: int, channels: int) -> None:
    shape = (2, prefix + math.prod(s // stride for s in size), channels)
    assert infer_layout(shape, (2, 3, *size)) == (Layout(-1, prefix), (stride,) * len(size))


@pytest.mark.parametrize(
    ("shape", "image", "expected"),
    [
        ((2, 8, 4, 4), (2, 3, 8, 8), (CHANNELS_FIRST, (2, 2))),
        ((2, 4, 4, 4), (2, 3, 8, 8), (CHANNELS_FIRST, (2, 2))),  # a tie
        ((2, 2, 3, 192), (2, 3, 64, 96), (CHANNELS_LAST, (32, 32))),
        ((2, 192, 2, 3), (2, 3, 64, 96), (CHANNELS_FIRST, (32, 32))),
        ((2, 16, 2, 8, 6), (2, 1, 8, 64, 48), (CHANNELS_FIRST, (4, 8, 8))),
        ((2, 16, 48), (2, 1, 64, 64), (TOKENS, (16, 16))),
        ((2, 48, 16), (2, 1, 64, 64), (CHANNELS_FIRST, (16, 16))),
        ((2, 21, 48), (2, 1, 64, 64), (Layout(-1, 5), (16, 16))),
        ((2, 9, 48), (2, 1, 47, 47), (TOKENS, (16, 16))),  # rounded up
        ((2, 25, 32), (2, 1, 64, 64), (Layout(-1, 9), (16, 16))),
        ((2, 16, 4, 5), (2, 1, 50, 71), (CHANNELS_FIRST, (16, 16))),  # padded, or rounded down and up
        ((2, 16, 3, 4), (2, 1, 50, 70), (CHANNELS_FIRST, (16, 16))),
        ((2, 16, 5, 5), (2, 1, 70, 70), (CHANNELS_FIRST, (14, 14))),  # divides, and so is likelier than 16
        ((2, 16, 2, 4), (2, 1, 64, 96), (CHANNELS_FIRST, (32, 24))),
        ((1, 32, 13), (1, 1, 100), (CHANNELS_FIRST, (8,))),
        ((2, 8), (2, 3, 64, 64), None),
        ((4, 8, 4, 4), (2, 3, 64, 64), None),
        ((2, 8, 128, 128), (2, 3, 64, 64), None),
        ((2, 13, 14), (2, 3, 64, 64), None),
        ((2, 3, 4, 5, 6), (2, 3, 64, 64), None),
        ((2, 8, 4), (2, 8), None),
        ((2, 8, 4), (), None),
    ],
)
def test_layouts_by_hand(shape: tuple[int, ...], image: tuple[int, ...], expected: Any) -> None:
    assert infer_layout(shape, image) == expected
