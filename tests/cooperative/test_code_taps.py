"""Taps of an image code and shape codes together, against plain hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentaug.cooperative.code_taps import CodeTaps
from latentaug.tap.latent_tap import LatentTap
from latentaug.tracing.location import Location
from tests.models.segmenters import SkipNet
from tests.support.cooperation import batch, code_at, scaled_at
from tests.support.traces import traces

IMAGES = batch(dtype=torch.float64)[0]


def skip_net() -> SkipNet:
    torch.manual_seed(0)
    return SkipNet(dropout=0).double().eval()


def locations(model: SkipNet, *layers: str) -> list[Location]:
    return LatentTap(model, layers, example=IMAGES).layers


@pytest.mark.parametrize(
    ("image", "shapes"),
    [
        ("bottleneck", ["bottleneck"]),
        ("down", ["down", "bottleneck"]),
        ("down", ["bottleneck"]),
        ("bottleneck", ["down"]),
        ("stem", ["down", "bottleneck"]),
    ],
)
def test_codes_are_those_that_hooks_see_and_replays_start_at_the_shape_codes(image: str, shapes: list[str]) -> None:
    model = skip_net()
    (image_code,), shape_codes = locations(model, image), locations(model, *shapes)
    with CodeTaps(model, image_code, shape_codes) as taps:
        logits = model(IMAGES)
        codes = taps.codes
        assert {code.name for code in codes} == {image, *shapes}
        assert list(codes)[: len(shapes)] == shape_codes
        for location, code in codes.items():
            assert torch.equal(code, code_at(skip_net(), location.name, IMAGES))
        assert torch.equal(taps.replay([codes[location] for location in shape_codes]), logits)
        replayed = taps.replay([lambda code: 0.5 * code] * len(shapes))
    expected = scaled_at(skip_net(), dict.fromkeys(shapes, torch.tensor(0.5, dtype=torch.float64)), IMAGES)
    torch.testing.assert_close(replayed, expected, rtol=1e-12, atol=1e-12)


def test_codes_are_live_in_the_graph_of_the_pass() -> None:
    model = skip_net()
    down, bottleneck = locations(model, "down", "bottleneck")
    with CodeTaps(model, down, [bottleneck]) as taps:
        logits: Tensor = model(IMAGES)
        found = torch.autograd.grad(logits.square().sum(), [taps.codes[down], taps.codes[bottleneck]])

    other, kept = skip_net(), list[Tensor]()
    for layer in ("down", "bottleneck"):
        other.get_submodule(layer).register_forward_hook(lambda module, inputs, code: kept.append(code))
    expected = torch.autograd.grad(other(IMAGES).square().sum(), kept)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_an_image_code_that_is_a_shape_code_is_tapped_once() -> None:
    model = skip_net()
    down, bottleneck = locations(model, "down", "bottleneck")
    with CodeTaps(model, bottleneck, [down, bottleneck]) as taps:
        model(IMAGES)
        assert list(taps.codes) == [down, bottleneck]


def test_the_model_is_left_as_it_was_after_an_error_too() -> None:
    model = skip_net()
    down, bottleneck = locations(model, "down", "bottleneck")
    before = traces(model)
    taps = CodeTaps(model, down, [bottleneck])

    def fail_half_way() -> None:
        with taps:
            model(IMAGES)
            raise ArithmeticError("half way")

    for _ in range(2):  # the same object may be entered again
        with pytest.raises(ArithmeticError, match="half way"):
            fail_half_way()
        assert traces(model) == before
