"""Layouts: every code can be seen as [B, C, *S], and a factor finds its way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, TOKENS, Layout


def ramp(*shape: int) -> Tensor:
    """Every entry its own number, so that a misplaced one shows."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def test_channels_come_to_axis_one_and_sites_keep_their_order(code: Tensor, layout: Layout) -> None:
    view = layout.to_channels_first(code)
    assert view.shape[:2] == (2, 8)
    assert view.flatten(2).shape[2] == 15
    entries = [[code[b].flatten()[i::8] for i in range(8)] for b in range(2)]  # channels last: every eighth number
    if layout == CHANNELS_FIRST:
        entries = [[code[b, c].flatten() for c in range(8)] for b in range(2)]
    sites_seen = [[row[layout.prefix_tokens :] for row in sample] for sample in entries]
    for b in range(2):
        for c in range(8):
            torch.testing.assert_close(view[b, c].flatten(), sites_seen[b][c], rtol=0, atol=0)


def test_to_channels_first_is_a_view(code: Tensor, layout: Layout) -> None:
    assert layout.to_channels_first(code).untyped_storage().data_ptr() == code.untyped_storage().data_ptr()


@pytest.mark.parametrize("kept", ["B C 1", "B 1 S", "B C S", "1 1 1"])
def test_a_factor_does_in_the_codes_layout_what_it_does_channels_first(code: Tensor, layout: Layout, kept: str) -> None:
    view = layout.to_channels_first(code)
    batch, channels, sites = (axis != "1" for axis in kept.split())
    shape = [2 if batch else 1, 8 if channels else 1, *(n if sites else 1 for n in view.shape[2:])]
    factor = 2 + ramp(*shape)
    masked = code * layout.from_channels_first(factor, code)
    assert masked.shape == code.shape
    torch.testing.assert_close(layout.to_channels_first(masked), view * factor, rtol=0, atol=0)


def test_prefix_tokens_get_ones() -> None:
    factor = Layout(-1, prefix_tokens=2).from_channels_first(torch.zeros(3, 4, 1), torch.ones(3, 7, 4))
    assert factor.tolist() == [[[1.0] * 4] * 2 + [[0.0] * 4] * 5] * 3


def test_an_axis_in_the_middle_may_hold_the_channels() -> None:
    code = ramp(2, 3, 8, 5)
    layout = Layout(channel_dim=2)
    assert torch.equal(layout.to_channels_first(code), code.permute(0, 2, 1, 3))
    assert layout.from_channels_first(torch.ones(2, 8, 1, 1), code).shape == (2, 1, 8, 1)


def test_a_volume_and_a_signal_need_no_layout_of_their_own() -> None:
    for shape in [(2, 8, 5), (2, 8, 2, 3, 4)]:
        assert CHANNELS_FIRST.to_channels_first(torch.zeros(shape)).shape == shape
    assert CHANNELS_LAST.to_channels_first(torch.zeros(2, 2, 3, 4, 8)).shape == (2, 8, 2, 3, 4)


def test_layouts_print_and_compare_by_what_they_say() -> None:
    assert [str(layout) for layout in (CHANNELS_FIRST, CHANNELS_LAST, Layout(-1, 1), Layout(2))] == [
        "channels first",
        "channels last",
        "tokens, 1 prefix",
        "channels at axis 2",
    ]
    assert repr(Layout(-1, 1)) == "Layout(channel_dim=-1, prefix_tokens=1)"
    assert Layout(channel_dim=-1) == TOKENS
    assert len({CHANNELS_FIRST, Layout(), CHANNELS_LAST}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel_dim": 0}, "channel_dim other than 0, the batch axis"),
        (
            {"prefix_tokens": -1, "channel_dim": -1},
            "prefix_tokens of a Layout must be a whole number, 0 or more; got -1",
        ),
        ({"prefix_tokens": 1}, r"channel_dim=-1 for prefix_tokens=1, a code \[B, N, C\]; got channel_dim=1"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**arguments)


@pytest.mark.parametrize("value", ["last", None, 1.0, True, (1,)])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"Layout needs a whole number as channel_dim; got .* Pass 1, or -1 for channels last"
    ):
        Layout(value)
    with pytest.raises(ValueError, match="prefix_tokens of a Layout must be a whole number, 0 or more; got"):
        Layout(-1, value)


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        (CHANNELS_FIRST, (2, 8), r"a batch, a channel and a site axis; got shape \(2, 8\)\. .*unsqueeze"),
        (Layout(3), (2, 8, 4), r"channels at axis 3; got shape \(2, 8, 4\)"),
        (Layout(-3), (2, 8, 4), r"channels at axis -3; got shape \(2, 8, 4\)"),
        (Layout(-1, 1), (2, 4, 4, 8), r"a code \[B, N, C\]; got shape \(2, 4, 4, 8\)"),
        (Layout(-1, 4), (2, 4, 8), r"more tokens than the prefix; got shape \(2, 4, 8\)"),
    ],
)
def test_a_code_that_does_not_fit_is_refused(layout: Layout, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout.to_channels_first(torch.zeros(shape))
