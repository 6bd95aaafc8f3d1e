"""What a user may call a layer, and which image a model is given."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, TOKENS
from latentaug.tap.latent_tap import LatentTap
from latentaug.tracing.location import (
    Location,
    Spot,
    as_inputs,
    batch_of,
    complete_spots,
    few_samples,
    find_spot,
    first_samples,
    image_in,
    resized,
    spot_in,
    unwrap,
)


def test_a_location_knows_its_grid_and_its_name() -> None:
    assert Location("encoder", (5,), CHANNELS_FIRST, (2, 512, 2, 3), (32, 32)).grid == (2, 3)
    assert Location("encoder", (), CHANNELS_LAST, (2, 2, 3, 512), (32, 32)).grid == (2, 3)
    assert Location("vit", (0,), TOKENS, (2, 16, 48), (16, 16)).grid == (16,)
    assert str(Location("backbone", ("out",), CHANNELS_FIRST, (), ())) == "backbone['out']"
    assert str(Location("a.b", (1, "x"), CHANNELS_FIRST, (), ())) == "a.b[1]['x']"


def test_examples_are_read_as_arguments() -> None:
    x = torch.zeros(1)
    assert as_inputs(x) == ((x,), {})
    assert as_inputs((x, 2)) == ((x, 2), {})
    assert as_inputs({"image": x}) == ((), {"image": x})


def test_the_image_is_the_first_that_may_be_one() -> None:
    image, labels, vector = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.long), torch.zeros(2, 5)
    assert image_in([vector, labels, {"image": image}]) is image
    assert image_in([vector, labels]) is labels
    assert image_in([vector, "text"]) is None
    words = torch.zeros(2, 7, 16)
    assert image_in({"words": words, "image": image}) is image


@pytest.fixture
def nested() -> nn.Module:
    return nn.Sequential(
        OrderedDict(encoder=nn.Sequential(OrderedDict(layer3=nn.Conv2d(1, 1, 1), layer4=nn.ReLU())), head=nn.ReLU())
    )


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("encoder", ("encoder", None)),
        ("encoder.layer4", ("encoder.layer4", None)),
        ("encoder[5]", ("encoder", (5,))),
        ("encoder[-1]", ("encoder", (-1,))),
        ("encoder['out']", ("encoder", ("out",))),
        ('encoder["out"]', ("encoder", ("out",))),
        ("encoder[out][0]", ("encoder", ("out", 0))),
        ("encoder.layer3[0]['a']", ("encoder.layer3", (0, "a"))),
        ("module.encoder", ("encoder", None)),
        ("_orig_mod.encoder[1]", ("encoder", (1,))),
        ("", ("", None)),
        (Location("encoder", (2,), CHANNELS_FIRST, (), ()), ("encoder", (2,))),
        (Location("", (), CHANNELS_FIRST, (), ()), ("", ())),
    ],
    ids=str,
)
def test_layers_are_found_by_name(nested: nn.Module, layer: Any, expected: Any) -> None:
    assert find_spot(nested, layer) == expected


def test_layers_are_found_by_identity(nested: nn.Module) -> None:
    assert find_spot(nested, nested.encoder.layer4) == ("encoder.layer4", None)
    assert find_spot(nested, nested) == ("", None)


def test_a_module_under_two_names_has_one() -> None:
    model = nn.Module()
    model.first = model.second = nn.ReLU()
    assert find_spot(model, "second") == find_spot(model, "first") == ("first", None)


def test_a_real_submodule_called_module_goes_first() -> None:
    model = nn.Sequential(OrderedDict(conv=nn.ReLU(), module=nn.Sequential(OrderedDict(conv=nn.Tanh()))))
    assert find_spot(model, "module.conv") == ("module.conv", None)
    assert find_spot(model, "conv") == ("conv", None)


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (
            "encoder.layr4",
            ValueError,
            r"no submodule 'encoder.layr4' in Sequential; closest: 'encoder.layer4', 'encoder",
        ),
        ("encodr[5]", ValueError, r"no submodule 'encodr' in Sequential; closest: 'encoder'"),
        ("qqqqqq", ValueError, r"no submodule 'qqqqqq' in Sequential. Pass one of its names, or the module itself."),
        (nn.ReLU(), ValueError, r"needs a submodule of Sequential; got another ReLU"),
        (5, TypeError, r"needs a dotted name, a module, a Location or None; got int"),
    ],
    ids=str,
)
def test_unknown_layers_are_named_with_their_likes(
    nested: nn.Module, layer: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        find_spot(nested, layer)


def test_places_are_completed_from_the_output() -> None:
    a, b = torch.zeros(1), torch.zeros(2)
    assert spot_in("m", None, a).path == ()
    assert spot_in("m", None, {"only": [a, None]}).path == ("only", 0)
    assert spot_in("m", (-1,), [a, b]).path == (1,)
    assert spot_in("m", (1,), [a, a]).path == (0,)  # the same tensor
    for path, output in ((None, [a, b]), ((2,), [a]), (("x",), [a]), ((0, 0), None), ((), [a]), (None, "text")):
        with pytest.raises(ValueError, match="needs one tensor"):
            spot_in("m", path, output)


def test_unwrapping_stops_at_the_users_model() -> None:
    model = nn.Sequential(nn.ReLU())
    assert unwrap(model) is model
    assert unwrap(torch.compile(model, backend="eager")) is model
    assert unwrap(nn.DataParallel(torch.compile(model, backend="eager"))) is model


def test_the_batch_is_that_of_the_image_or_of_the_first_floats() -> None:
    image, labels = torch.zeros(4, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    assert batch_of(((labels, image), {})) == 4
    assert batch_of(((labels, torch.zeros(())), {"x": torch.zeros(5, 2)})) == 5
    assert batch_of(((labels, "text"), {})) is None


def test_first_samples_are_cut_from_what_has_the_batch_and_copied() -> None:
    image, ages = torch.zeros(4, 3, 8, 8).requires_grad_(), torch.zeros(4)
    table, count = torch.zeros(7, 2), torch.zeros(())
    (cut, same_table), named = first_samples(((image, table), {"ages": ages, "count": count, "name": "x"}), 2)
    assert (cut.shape, named["ages"].shape) == ((2, 3, 8, 8), (2,))
    assert (same_table.shape, named["count"].shape, named["name"]) == ((7, 2), (), "x")
    assert (cut.requires_grad, cut.is_leaf, named["ages"].requires_grad) == (True, True, False)
    named["ages"].add_(1)
    assert not ages.any()
    (whole, _), _ = first_samples(((image, table), {}), None)
    assert whole.shape == image.shape


def test_images_and_what_has_their_size_are_resized() -> None:
    image, labels = torch.rand(2, 3, 8, 12).requires_grad_(), torch.randint(5, (2, 1, 8, 12))
    other = torch.rand(2, 3, 4, 6)
    (small, small_labels, same_other), named = resized(((image, labels, other), {"n": 3}), (4, 6))
    assert (small.shape, small_labels.shape) == ((2, 3, 4, 6), (2, 1, 4, 6))
    assert (small.dtype, small_labels.dtype, small.requires_grad) == (image.dtype, labels.dtype, True)
    assert set(small_labels.flatten().tolist()) <= set(labels.flatten().tolist())
    assert torch.equal(same_other, other)
    assert named == {"n": 3}


def test_compiled_models_are_given_all_samples() -> None:
    model = nn.Sequential(nn.ReLU())
    assert few_samples(model) == 2
    model[0].compile(backend="eager")
    assert few_samples(model) is None


def test_spots_are_completed_by_two_samples_with_the_shapes_of_all() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.windows = nn.Flatten(0, 1)
            self.table = nn.Embedding(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.windows(x).mean() + self.table(torch.arange(3)).mean()

    model, seen = Part(), list[int]()
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    found = complete_spots(model, [("windows", None), ("table", None)], -1, (torch.zeros(6, 4, 8, 8),), {})
    assert found == {Spot("windows", ()): (24, 8, 8), Spot("table", ()): (3, 5)}
    assert seen == [2]


def test_a_layer_within_vmap_is_refused() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Conv2d(1, 4, 4, 4), nn.ConvTranspose2d(4, 2, 4, 4)

        def forward(self, images: Tensor) -> Any:
            return self.decoder(torch.func.vmap(lambda image: self.encoder(image[None])[0])(images))

    with pytest.raises(RuntimeError, match=r"cannot tap 'encoder', which Mapped calls within torch\.func\.vmap"):
        LatentTap(Mapped(), "encoder", example=torch.rand(2, 1, 16, 16))
