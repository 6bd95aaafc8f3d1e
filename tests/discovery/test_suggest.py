"""Where a transform is put, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from latentaug import (
    GIN,
    Compose,
    DropBlock,
    LatentTransform,
    ManifoldMixup,
    MixStyle,
    OneOf,
    RandomApply,
    RandomChannelMask,
    find_bottleneck,
    paper_masks,
    suggest_layers,
)
from tests.models.handwritten.attention import Segmenter
from tests.models.handwritten.blocks import ResUNet
from tests.models.handwritten.unets import FunctionalUNet, PoppingUNet
from tests.models.parts import conv
from tests.support.compare import same
from tests.support.random_streams import random_state
from tests.support.traces import traces

IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def placed(place: str) -> LatentTransform:
    transform = LatentTransform()
    transform.place = place
    return transform


PLACES: dict[str, tuple[LatentTransform, list[str], str]] = {
    "image": (GIN(), [], "its paper changes them before the model sees them: call GIN(...).augment(images)"),
    "first": (placed("first"), ["downs.0"], "the first of the encoder's 4 stages, of stride 1x1"),
    "early": (MixStyle(), ["downs.0", "downs.1"], "the first two of the encoder's 4 stages, of strides 1x1 and 2x2"),
    "input or early": (
        ManifoldMixup(),
        ["downs.0", "downs.1"],
        "one of these, or the images: the first two of the encoder's 4 stages, of strides 1x1 and 2x2",
    ),
    "encoder": (
        placed("encoder"),
        ["downs.0", "downs.1", "downs.2", "bottleneck"],
        "all of the encoder's 4 stages, of strides 1x1, 2x2, 4x4 and 8x8",
    ),
    "deep": (
        DropBlock(),
        ["downs.2", "bottleneck"],
        "the last two of the encoder's 4 stages, of strides 4x4 and 8x8",
    ),
    "bottleneck": (RandomChannelMask(), ["bottleneck"], "the bottleneck, of stride 8x8"),
    "late decoder": (
        placed("late decoder"),
        ["ups.3", "ups.5"],
        "the last two of the decoder's 3 stages before the logits, of strides 2x2 and 1x1",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_each_place_has_its_layers_and_a_reason_in_one_line(place: str) -> None:
    transform, layers, reason = PLACES[place]
    assert transform.place == place
    suggestion = suggest_layers(PoppingUNet(), IMAGES, transform)
    assert list(map(str, suggestion.layers)) == layers
    assert suggestion.reason == reason
    assert str(suggestion) == f"{', '.join(layers) or 'the images themselves'}: {reason}"


def test_what_comes_before_a_residual_encoder_is_a_stage_for_those_that_go_everywhere_only() -> None:
    early, everywhere = (suggest_layers(ResUNet(), IMAGES, one) for one in (MixStyle(), placed("encoder")))
    assert list(map(str, early.layers)) == ["residual1", "residual2"]
    assert list(map(str, everywhere.layers)) == ["input_layer", "residual1", "residual2", "bridge"]
    assert everywhere.reason == "the stem and all of the encoder's 3 stages, of strides 1x1, 2x2, 4x4 and 8x8"


def test_the_reason_tells_where_an_encoder_of_one_grid_was_cut() -> None:
    suggestion = suggest_layers(Segmenter(), IMAGES, MixStyle())
    assert "the encoder's 4 stages, cut by depth as its grid is one, of strides 8x8 and 8x8" in suggestion.reason


@pytest.mark.parametrize(
    ("transform", "place"),
    [
        (Compose([RandomChannelMask(), RandomChannelMask()]), "bottleneck"),
        (paper_masks(), "bottleneck"),
        (RandomApply(MixStyle()), "early"),
        (OneOf([MixStyle(), RandomApply(MixStyle())]), "early"),
        (RandomApply(GIN()), "image"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_composed_transforms_go_where_all_of_them_go(transform: LatentTransform, place: str) -> None:
    assert transform.place == place
    assert (
        suggest_layers(FunctionalUNet(), IMAGES, transform).layers
        == suggest_layers(FunctionalUNet(), IMAGES, placed(place)).layers
    )


def test_composed_transforms_of_different_places_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got Compose with 'early and bottleneck'. Ask for each transform by itself"):
        suggest_layers(FunctionalUNet(), IMAGES, Compose([MixStyle(), RandomChannelMask()]))


def test_a_module_that_knows_no_place_goes_to_the_bottleneck() -> None:
    model = FunctionalUNet()
    assert suggest_layers(model, IMAGES, nn.Dropout2d()).layers == (find_bottleneck(model, IMAGES),)


@pytest.mark.parametrize(
    ("model", "transform", "message"),
    [
        (
            nn.Sequential(conv(3, 4), conv(4, 2)),
            MixStyle(),
            r"suggest_layers cannot place MixStyle in Sequential, whose stages it tells by their grids. "
            r"find_bottleneck found no code .* augmented\(model, \{layer: MixStyle\(\)\}\)",
        ),
        (
            nn.Sequential(conv(3, 4, 2), nn.Upsample(scale_factor=2)),
            MixStyle(),
            "found no layer for MixStyle in Sequential: there is no stage before the bottleneck",
        ),
        (
            nn.Sequential(conv(3, 4, 2), conv(4, 2), nn.Upsample(scale_factor=2)),
            placed("late decoder"),
            "there is no stage between the bottleneck and the logits",
        ),
    ],
    ids=["one scale", "one stage", "no decoder"],
)
def test_a_model_without_such_stages_is_refused(model: nn.Module, transform: LatentTransform, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suggest_layers(model, IMAGES, transform)


def test_of_several_results_one_may_be_read() -> None:
    class TwoHeads(FunctionalUNet):
        def forward(self, x: Any) -> Any:
            return super().forward(x), x.mean()

    suggestion = suggest_layers(TwoHeads(), IMAGES, placed("late decoder"), logits=lambda output: output[0])
    assert list(map(str, suggestion.layers)) == ["dec2", "dec1"]


def test_looking_changes_nothing() -> None:
    model = ResUNet().train()
    before, stream, state = traces(model), random_state(), {k: v.clone() for k, v in model.state_dict().items()}
    suggest_layers(model, IMAGES, MixStyle())
    assert (traces(model), random_state()) == (before, stream)
    assert same(model.state_dict(), state)
    assert model.training
