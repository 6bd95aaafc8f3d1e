"""The heads: sizes, layouts, ranges and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.layout import CHANNELS_LAST, Layout
from latentaug.nets.heads import CodeDecoupler, ReconstructionHead, ShapePrior


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size", [(9,), (5, 6), (3, 4, 5)])
def test_a_shape_code_has_the_shape_of_the_code_and_is_never_negative(size: tuple[int, ...]) -> None:
    code = torch.randn(2, 8, *size)
    shape_code = CodeDecoupler(8, spatial_dims=len(size))(code)
    assert shape_code.shape == code.shape
    assert shape_code.min() == 0
    assert shape_code.max() > 0


@pytest.mark.parametrize(
    ("channels", "grid", "stride", "size"),
    [
        (128, (4, 4), (16, 16), (64, 64)),
        (64, (2, 3), (32, 32), (64, 96)),
        (7, (4, 7), (16, 16), (63, 100)),  # the last stride hangs over
        (7, (3, 6), (16, 16), (63, 100)),  # a model that rounds down
        (40, (5, 4), (14, 14), (70, 56)),
        (12, (4, 4), (12, 12), (48, 48)),
        (12, (3, 4), (3, 5), (9, 20)),
        (6, (8, 8), (1, 1), (8, 8)),
        (200, (8, 8), (1, 1), (8, 8)),
        (16, (16,), (8,), (128,)),
        (8, (3, 4, 4), (1, 4, 4), (3, 16, 16)),
        (8, (2, 3, 4), (4, 8, 8), (8, 24, 32)),
    ],
)
def test_a_reconstruction_has_the_size_asked_for(
    channels: int, grid: tuple[int, ...], stride: tuple[int, ...], size: tuple[int, ...]
) -> None:
    head = ReconstructionHead(channels, 2, stride, width=4)
    image = head(torch.rand(2, channels, *grid), size)
    assert image.shape == (2, 2, *size)
    assert image.min() >= 0
    assert image.max() <= 1


def test_tokens_and_channels_last_are_only_other_views() -> None:
    code = torch.rand(2, 6, 4, 5)
    head = ReconstructionHead(6, 1, (8, 8), width=2).eval()
    expected = head(code, (32, 40))

    head.layout = CHANNELS_LAST
    torch.testing.assert_close(head(code.movedim(1, -1), (32, 40)), expected)
    tokens = code.flatten(2).movedim(1, -1)
    torch.testing.assert_close(head(tokens, (32, 40)), expected)

    head.layout = Layout(channel_dim=-1, prefix_tokens=2)
    with_prefix = torch.cat([torch.full((2, 2, 6), 1e3), tokens], dim=1)
    torch.testing.assert_close(head(with_prefix, (32, 40)), expected)


def test_tokens_of_a_model_that_rounds_down() -> None:
    head = ReconstructionHead(6, 1, (14, 14), width=2, layout=CHANNELS_LAST)
    assert head(torch.rand(2, 4 * 5, 6), (60, 75)).shape == (2, 1, 60, 75)


def test_a_wrong_number_of_tokens_is_named() -> None:
    head = ReconstructionHead(6, 1, (8, 8), layout=CHANNELS_LAST)
    with pytest.raises(ValueError, match=r"needs 4 x 4 tokens .* got 17. Check `stride` and the prefix"):
        head(torch.rand(2, 17, 6), (32, 32))


def test_a_reconstruction_equals_the_slow_way_in_the_papers_case() -> None:
    head = ReconstructionHead(128, 1, (16, 16), width=16).eval()
    x = torch.rand(1, 128, 3, 2)
    expected = x
    for block, width in zip(head.decoder.blocks, [64, 32, 16, 16], strict=True):
        assert isinstance(block.upsample, nn.ConvTranspose2d)
        assert block.upsample.kernel_size == block.upsample.stride == (2, 2)
        upsampled = block.upsample(expected)
        expected = nn.functional.leaky_relu(block.body(upsampled) + block.shortcut(upsampled), 0.2)
        assert expected.shape[1] == width
    expected = torch.sigmoid(head.decoder.projection(expected))
    torch.testing.assert_close(head(x, (48, 32)), expected)


def test_a_reconstruction_keeps_to_the_range_of_images() -> None:
    code = 100 * torch.randn(2, 8, 8, 8)
    scaled = ReconstructionHead(8, 1, (4, 4), image_range=(-1, 3))
    image = scaled(code, (32, 32))
    assert -1 <= image.min() < 0
    assert 2 < image.max() <= 3
    scaled.image_range = None
    linear = scaled(code, (32, 32))
    torch.testing.assert_close(image, -1 + 4 * linear.sigmoid())


@pytest.mark.parametrize("image_range", [(1, 0), (0, 0), (0, math.nan)])
def test_an_empty_range_of_images_is_refused(image_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="image_range must be a pair"):
        ReconstructionHead(8, 1, (4, 4), image_range=image_range)


def test_a_head_is_small_on_wide_codes() -> None:
    assert parameters_of(ReconstructionHead(2048, 3, (32, 32))) < 0.52e6
    assert parameters_of(ReconstructionHead(128, 1, (16, 16))) < 0.25e6


def test_finer_axes_are_upsampled_deepest() -> None:
    head = ReconstructionHead(8, 1, (2, 8, 4), width=1)
    assert [block.upsample.stride for block in head.decoder.blocks] == [(2, 2, 2), (1, 2, 2), (1, 2, 1)]


@pytest.mark.parametrize("size", [(33,), (16, 16), (17, 30), (8, 9, 20)])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_a_prior_takes_any_size(size: tuple[int, ...], num_classes: int) -> None:
    prior = ShapePrior(num_classes, width=2, depth=3, spatial_dims=len(size))
    logits = torch.randn(2, num_classes, *size)
    assert prior.refine(logits).shape == logits.shape


@pytest.mark.parametrize(("num_classes", "soften"), [(1, torch.sigmoid), (3, lambda x: torch.softmax(x, 1))])
def test_refine_reads_softened_probabilities(num_classes: int, soften: Callable[[Tensor], Tensor]) -> None:
    prior = ShapePrior(num_classes, width=2, depth=1, temperature=4.0).eval()
    logits = torch.randn(2, num_classes, 8, 8)
    torch.testing.assert_close(prior.refine(logits), prior(soften(logits / 4)))


def test_an_image_more_leaves_the_others_alone() -> None:
    prior = ShapePrior(2, width=2, depth=2).eval()
    probabilities = torch.rand(3, 2, 9, 9)
    torch.testing.assert_close(prior(probabilities)[:1], prior(probabilities[:1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a whole number, 1 or more; got 0"),
        ({"num_classes": 3, "temperature": 0.0}, r"temperature must be a finite number above 0; got 0\.0"),
    ],
)
def test_a_prior_of_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapePrior(**options)


def test_repr_shows_what_the_submodules_do_not() -> None:
    head = ReconstructionHead(8, 1, (4, 4), width=1, layout=CHANNELS_LAST)
    assert "stride=(4, 4), image_range=(0.0, 1.0), layout=channels last" in repr(head)
    assert "num_classes=3, temperature=2.0" in repr(ShapePrior(3, width=1, depth=1))


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_a_prior_of_half_the_resolution_returns_logits_of_the_whole(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    prior = ShapePrior(3, width=2, depth=2, scale=0.5)
    seen: list[torch.Size] = []
    prior.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    logits = torch.randn(2, 3, *size)
    assert prior.refine(logits).shape == logits.shape
    assert [tuple(shape[2:]) for shape in seen] == [tuple(round(n / 2) for n in size)]


def test_a_head_of_a_smaller_scale_decodes_smaller_images() -> None:
    head = ReconstructionHead(8, 1, (8, 8), scale=0.5)
    assert head(torch.rand(2, 8, 4, 6), (16, 24)).shape == (2, 1, 16, 24)
    assert len(head.decoder.blocks) == 2
