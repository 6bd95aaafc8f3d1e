"""Which codes a model is trained on where nothing is said: a fine one for images, the bottleneck for segmentations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug import CooperativeModel, HardExamples, cooperative_backward, find_bottleneck, find_codes, find_levels
from tests.models.parts import conv
from tests.models.segmenters import Levels
from tests.support.compare import same
from tests.support.random_streams import random_state
from tests.support.traces import traces


class UNet(nn.Module):
    """A U-Net with levels at strides 4, 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.downs = nn.ModuleList([conv(a, b, stride=s) for a, b, s in ((1, 8, 4), (8, 16, 2), (16, 32, 2))])
        self.ups = nn.ModuleList([conv(a, b) for a, b in ((48, 16), (24, 8), (8, 3))])

    def forward(self, images: Tensor) -> Tensor:
        skips = [images]
        for down in self.downs:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up, skip, scale in zip(self.ups, [*reversed(skips[1:]), None], (2, 2, 4), strict=True):
            x = nn.functional.interpolate(x, scale_factor=scale)
            x = up(x if skip is None else torch.cat([x, skip], 1))
        return x


class TwoStreams(nn.Module):
    """Neither of two streams holds all that the bottleneck is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(1, 8, stride=8), conv(1, 8, stride=8)
        self.fused, self.up = conv(16, 16, stride=2), nn.ConvTranspose2d(16, 2, 16, 16)

    def forward(self, images: Tensor) -> Tensor:
        up: Tensor = self.up(self.fused(torch.cat([self.left(images), self.right(-images)], 1)))
        return up


def chain(*strides: int) -> nn.Sequential:
    """An encoder of so many levels, and an upsampling."""
    total = int(torch.tensor(strides).prod())
    return nn.Sequential(*(conv(1 + 3 * bool(n), 4, stride=s) for n, s in enumerate(strides)), nn.Upsample(None, total))


IMAGES = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "image", "shape"),
    [
        (UNet(), "downs.1", "downs.2"),
        (nn.Sequential(nn.Identity(), UNet()), "1.downs.1", "1.downs.2"),
        (chain(2, 2, 2, 2), "2", "3"),
        (chain(4, 4), "0", "1"),
        (chain(3, 2, 2), "1", "2"),
        (chain(2, 2), "1", "1"),
        (chain(16, 2), "1", "1"),
        (TwoStreams(), "fused", "fused"),
    ],
    ids=["unet", "wrapped", "stride 8", "stride 4 before 16", "stride 6", "fine bottleneck", "patches", "two streams"],
)
def test_images_come_from_the_coarsest_code_of_stride_8_at_most(model: nn.Module, image: str, shape: str) -> None:
    codes = find_codes(model, IMAGES)
    assert (str(codes.image), str(codes.shape)) == (image, shape)
    assert codes.shape == find_bottleneck(model, IMAGES)


def test_looking_changes_nothing() -> None:
    model = UNet().train()
    before, stream, state = traces(model), random_state(), {k: v.clone() for k, v in model.state_dict().items()}
    find_codes(model, IMAGES)
    assert (traces(model), random_state()) == (before, stream)
    assert same(model.state_dict(), state)


@pytest.mark.parametrize(
    ("named", "image", "shape"),
    [
        ({}, "downs.1", ["downs.2"]),
        ({"codes": "downs.2"}, "downs.2", ["downs.2"]),
        ({"codes": ["downs.0", "downs.2"]}, "downs.2", ["downs.0", "downs.2"]),
        ({"codes": {"image": "downs.0"}}, "downs.0", ["downs.2"]),
        ({"codes": {"shape": ["downs.2", "downs.0"]}}, "downs.1", ["downs.2", "downs.0"]),
    ],
    ids=["nothing", "layer", "layers", "image code", "shape codes"],
)
def test_what_is_named_is_taken_and_the_rest_is_found(named: dict[str, object], image: str, shape: list[str]) -> None:
    heads = {"reconstruction": True, "hard": HardExamples(every=1)}
    options: dict[str, Any] = {"image_range": None, **heads, **named}
    coop = CooperativeModel(UNet(), num_classes=3, example=IMAGES, **options)
    assert (str(coop.image_code), [str(code) for code in coop.shape_codes]) == (image, shape)
    output = cooperative_backward(coop, IMAGES, torch.randint(3, (2, 64, 96)))
    assert output.loss.isfinite()
    assert all(p.grad is not None for p in coop.parameters())


# Levels ---------------------------------------------------------------------------------------------------------------


def test_levels_are_what_the_call_of_the_bottleneck_returns_with_it() -> None:
    assert [str(level) for level in find_levels(Levels(), torch.rand(2, 1, 32, 48))] == ["encoder[2]", "encoder[3]"]
    assert [str(level) for level in find_levels(UNet(), IMAGES)] == ["downs.2"]


def test_a_level_that_the_decoder_does_not_read_is_none() -> None:
    class Deepest(Levels):
        def forward(self, images: Tensor) -> Tensor:
            levels = self.encoder(images)
            return self.head(self.decoder([levels[0], levels[1], torch.zeros_like(levels[2]), levels[3]]))

    assert [str(level) for level in find_levels(Deepest(), torch.rand(2, 1, 32, 48))] == ["encoder[3]"]
