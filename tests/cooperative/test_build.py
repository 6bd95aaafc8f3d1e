"""What `CooperativeModel` makes of its arguments."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from latentaug import (
    FTN,
    Codes,
    Compose,
    CooperativeModel,
    DropBlock,
    HardExamples,
    ManifoldMixup,
    MixStyle,
    MoEx,
    RandomApply,
    ReconstructionHead,
    cooperative_backward,
    find_codes,
    paper_masks,
    standard_backward,
)
from latentaug.augment.base import LatentTransform
from latentaug.augment.compose import OneOf
from latentaug.augment.masks import TargetedChannelMask
from latentaug.cooperative.build import coarsest, declaration, existing_submodules, new_shape_prior
from latentaug.layout import Layout
from latentaug.nets.functional import one_hot
from latentaug.tracing.location import Location
from tests.models.segmenters import SkipNet
from tests.support.cooperation import batch, case, cooperative, small_ftn

EXAMPLE = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    down = (nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*down, nn.ConvTranspose2d(8, 3, 4, 4))


def made(model: nn.Module | None = None, **options: Any) -> CooperativeModel:
    model = net() if model is None else model
    torch.manual_seed(0)
    return CooperativeModel(model, num_classes=3, example=options.pop("example", EXAMPLE), **options)


# Range of the images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "expected"),
    [(EXAMPLE, (0.0, 1.0)), (EXAMPLE - 0.5, None), (255 * EXAMPLE, None), (0 * EXAMPLE, (0.0, 1.0))],
)
def test_the_range_is_read_off_the_example_and_said(
    example: torch.Tensor, expected: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "latentaug"):
        coop = made(example=example, reconstruction=True)
    assert coop.image_range == expected
    assert coop.reconstruction.image_range == expected
    said = "in 0..1" if expected else "without bounds"
    assert any(said in record.getMessage() for record in caplog.records)


def test_a_given_range_is_taken() -> None:
    assert made(image_range=(0, 255)).image_range == (0.0, 255.0)
    assert made(image_range=None).image_range is None
    assert made(FTN(num_classes=3, width=2, depth=2, image_range=(-1.0, 2.0))).image_range == (-1.0, 2.0)


def test_other_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_range must be a pair \(low, high\) with low < high, .* got \(1, 0\)"):
        made(image_range=(1, 0))
    with pytest.raises(ValueError, match=r"image_range must be a pair .* or 'example'; got 'images'"):
        made(image_range="images")


# Codes --------------------------------------------------------------------------------------------------------------


def test_codes_are_named_in_every_way() -> None:
    model = net()
    both = Codes(*made(codes="2").shape_codes * 2)
    for codes in ("2", model[2], ["2"], {"image": "2", "shape": "2"}, both):
        coop = made(model, codes=codes, reconstruction=True)
        assert (str(coop.image_code), [str(one) for one in coop.shape_codes]) == ("2", ["2"])
    found = find_codes(model, EXAMPLE)
    coop = made(model, codes=found, reconstruction=True)
    assert (coop.image_code, coop.shape_codes) == (found.image, [found.shape])


def test_both_codes_of_a_model_that_declares_none_are_the_bottleneck() -> None:
    coop = cooperative()
    assert coop.image_code.name == "bottleneck"
    assert coop.shape_codes == [coop.image_code]
    assert coop.image_code.stride == (4, 4)


def test_ftn_brings_its_codes_and_its_image_decoder() -> None:
    coop, *_ = case("ftn")
    assert (coop.image_code.name, coop.shape_codes[0].name) == ("encoder", "decoupler")
    assert coop.reconstruction is coop.model.image_decoder
    assert coop.reconstruction_head is None
    names = [name for name, _ in coop.named_parameters()]
    assert len(names) == len({id(parameter) for parameter in coop.parameters()})
    assert not [name for name in names if "reconstruction" in name]


def test_a_layer_given_overrides_what_the_ftn_declares() -> None:
    coop = cooperative(small_ftn, codes="decoupler")
    assert coop.image_code == coop.shape_codes[0]
    assert isinstance(coop.reconstruction_head, ReconstructionHead)


def test_a_declaration_is_names_and_a_decoder_or_nothing() -> None:
    ftn = small_ftn()
    assert declaration(ftn) == ("encoder", "decoupler", ftn.image_decoder)
    assert declaration(net()) is None
    half = net()
    half.image_code, half.shape_code, half.image_decoder = "0", "2", "4"  # type: ignore[assignment]
    assert declaration(half) is None


def test_the_coarsest_location_has_the_most_pixels_at_each_position() -> None:
    strides = [(2, 2), (1, 8), (4, 1)]
    locations = [Location("code", (i,), Layout(), (1, 2, 4, 4), stride) for i, stride in enumerate(strides)]
    assert coarsest(locations).stride == (1, 8)


def test_other_names_of_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="codes must name 'image' or 'shape'; got 'mask'"):
        made(codes={"mask": "2"})


# Heads --------------------------------------------------------------------------------------------------------------


def test_heads_are_sized_by_the_example() -> None:
    images = torch.rand(1, 2, 96, 96)
    model = SkipNet(in_channels=2)
    heads: dict[str, Any] = {"reconstruction": True, "shape_prior": True}
    coop = CooperativeModel(model, num_classes=3, example=images, codes="bottleneck", image_range=(-1, 1), **heads)
    assert coop.reconstruction.stride == (2, 2)  # of images at half the resolution
    assert coop.reconstruction.image_range == (-1, 1)
    assert coop.reconstruction(torch.rand(1, 16, 24, 24), (48, 48)).shape == (1, 2, 48, 48)
    assert coop.shape_prior is not None
    assert len(coop.shape_prior.encoder.blocks) == 2  # a grid of 12 x 12, as in the paper, at half the resolution
    doubled = CooperativeModel(model.double(), num_classes=3, example=images.double(), codes="bottleneck", **heads)
    assert {parameter.dtype for parameter in doubled.parameters()} == {torch.float64}


@pytest.mark.parametrize(("size", "depth"), [((192, 192), 4), ((96, 40), 3), ((12, 12), 1), ((24, 48, 48), 2)])
def test_the_code_of_a_new_shape_prior_has_about_twelve_positions_along_the_longest_axis(
    size: tuple[int, ...], depth: int
) -> None:
    prior = new_shape_prior(2, torch.empty(1, 1, *size))
    assert len(prior.encoder.blocks) == depth
    assert isinstance(
        next(one for one in prior.modules() if hasattr(one, "stride")), (nn.Conv2d, nn.Conv3d)[len(size) - 2]
    )


def test_an_image_decoder_of_another_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image decoder of image_range=None; got one of \(0.0, 1.0\)"):
        cooperative(small_ftn, image_range=None)


# Without a shape prior ----------------------------------------------------------------------------------------------


def test_without_a_shape_prior_there_is_none_and_nothing_is_computed_for_it() -> None:
    coop = made(shape_prior=False, reconstruction=True)
    assert coop.shape_prior is None
    assert not [name for name, _ in coop.named_parameters() if "shape" in name]
    output = cooperative_backward(coop, EXAMPLE, LABELS, generator=torch.Generator().manual_seed(3))
    assert [*output.losses] == [
        "segmentation",
        "reconstruction",
        "hard_image_segmentation",
        "hard_image_reconstruction",
    ]
    assert torch.equal(output.refined, output.logits)
    assert output.hard_images is not None
    assert output.hard_segmentation is None
    assert torch.equal(coop.predict(EXAMPLE), coop.predict(EXAMPLE, refine=0))
    assert [*standard_backward(coop, EXAMPLE, LABELS).losses] == ["segmentation", "reconstruction"]


def test_the_other_losses_are_those_with_a_prior() -> None:
    with_prior, without = (made(reconstruction=True, shape_prior=prior) for prior in (True, False))
    without.load_state_dict({k: v for k, v in with_prior.state_dict().items() if not k.startswith("shape_prior")})
    outputs = [coop(EXAMPLE, LABELS, generator=torch.Generator().manual_seed(3)) for coop in (with_prior, without)]
    for name in ("segmentation", "reconstruction"):
        assert torch.equal(outputs[0].losses[name], outputs[1].losses[name])


def test_in_parts_and_at_once_fill_the_same_gradients_without_a_prior() -> None:
    coop, again = (made(shape_prior=False, reconstruction=True) for _ in range(2))
    again.load_state_dict(coop.state_dict())
    coop(EXAMPLE, LABELS, generator=torch.Generator().manual_seed(3)).loss.backward()
    cooperative_backward(again, EXAMPLE, LABELS, generator=torch.Generator().manual_seed(3))
    for one, other in zip(coop.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_hard_segmentations_are_made_where_they_are_learned_from() -> None:
    coop = made(reconstruction=True, weights={"hard_code_segmentation": 1.0})
    output = coop(EXAMPLE, LABELS)
    assert "hard_code_segmentation" in output.losses
    assert output.hard_segmentation is not None


# Transforms ---------------------------------------------------------------------------------------------------------


def test_the_papers_masks_are_the_default() -> None:
    coop = cooperative()
    assert isinstance(coop.image_transform, OneOf)
    assert repr(coop.image_transform) == repr(paper_masks())
    assert coop.image_transform is coop.shape_transform


@pytest.mark.parametrize("augment", [MixStyle(p=1), DropBlock(0.3, 3), (MixStyle(p=1), DropBlock(0.3, 3))], ids=str)
def test_any_transform_makes_hard_examples(augment: Any) -> None:
    coop = made(augment=augment)
    output = cooperative_backward(coop, EXAMPLE, LABELS, generator=torch.Generator().manual_seed(3))
    assert output.loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in coop.parameters())
    coop.explain(EXAMPLE, LABELS)


def test_hard_images_are_what_the_changed_code_decodes_to() -> None:
    class Half(LatentTransform):
        def make_params(self, code: torch.Tensor, context: Any) -> dict[str, Any]:
            return {}

        def transform(self, code: torch.Tensor, **params: Any) -> torch.Tensor:
            return code / 2

    hard = HardExamples(noise=0, residual=0)
    coop = made(augment=Half(), codes="2", hard=hard, reconstruction=True, weights={"hard_code_segmentation": 0.0})
    output = coop(EXAMPLE, LABELS)
    code = coop.model[:3](EXAMPLE) / 2
    decoded = F.interpolate(coop.reconstruction(code, (8, 8)), size=(16, 16), mode="bilinear")
    torch.testing.assert_close(output.hard_images, decoded, rtol=1e-4, atol=1e-5)


def test_transforms_that_mix_a_whole_pass_or_climb_are_refused() -> None:
    class Climber(MixStyle):
        needs = ("loss_at",)

    with pytest.raises(TypeError, match=r"augment must change one code; ManifoldMixup mixes .* whole pass"):
        made(augment=ManifoldMixup())
    with pytest.raises(TypeError, match="no more than the saliency; Climber asks for loss_at"):
        made(augment=(MixStyle(), Climber()))


@pytest.mark.parametrize("augment", ["paper", TargetedChannelMask, (paper_masks(),), (paper_masks(), None)])
def test_other_things_than_transforms_are_refused(augment: Any) -> None:
    with pytest.raises(TypeError, match=r"augment must be a transform, or a pair of them .* got .* Pass an instance"):
        cooperative(augment=augment)


# Submodules ---------------------------------------------------------------------------------------------------------


def test_names_of_submodules_become_a_tuple_or_are_refused_by_the_name_of_the_option() -> None:
    assert existing_submodules(net(), "frozen_norms", ["0", ""]) == ("0", "")
    with pytest.raises(ValueError, match=r"frozen_norms must name submodules, such as .*; got \['7', 'x'\]"):
        existing_submodules(net(), "frozen_norms", ["0", "7", "x"])


# Batches ------------------------------------------------------------------------------------------------------------


def test_images_outside_their_range_are_refused_in_the_first_batch() -> None:
    coop = cooperative()
    images, labels = batch()
    with pytest.raises(ValueError, match=r"image_range=\(0, 1\); got values from .* None for images without bounds"):
        coop(10 * images - 5, labels)
    with pytest.raises(ValueError, match="got values from nan to nan"):
        coop(images * float("nan"), labels)
    coop(images + 1e-4, labels)
    coop(images + 1, labels)  # only the first good batch is looked at, so that no step waits for the device


def test_labels_outside_the_classes_are_refused() -> None:
    images, labels = batch()
    labels[0, 0, 0] = 255
    with pytest.raises(ValueError, match=r"needs labels in 0 … 2 or ignore_index=-100; got 255"):
        cooperative()(images, labels)
    with pytest.raises(ValueError, match=r"needs labels in 0 … 1 or ignore_index=-100; got 255"):
        cooperative(num_classes=1)(images, labels)


def test_labels_between_classes_are_refused() -> None:
    images, labels = batch()
    with pytest.raises(ValueError, match=r"needs labels in 0 … 2 or ignore_index=-100; got 0\.5"):
        cooperative()(images, labels / 2)


def test_one_hot_labels_are_refused() -> None:
    images, labels = batch()
    with pytest.raises(ValueError, match=r"needs labels \[B, \*S\] .* got \(3, 3, 16, 20\). Pass class indices"):
        cooperative()(images, one_hot(labels, 3))


def test_naming_an_image_code_asks_for_an_image_decoder() -> None:
    coop = made(codes={"image": "2"})
    assert str(coop.image_code) == "2"
    assert coop.reconstruction is not None
    with pytest.raises(ValueError, match=r"codes\['image'\] takes an image decoder; got reconstruction=False"):
        made(codes={"image": "2"}, reconstruction=False)


@pytest.mark.parametrize(
    "transform",
    [MoEx(), Compose([DropBlock(0.1, 3), MoEx()]), OneOf([MoEx(), DropBlock(0.1, 3)]), RandomApply(MoEx())],
)
def test_a_transform_that_mixes_labels_is_refused(transform: LatentTransform) -> None:
    with pytest.raises(TypeError, match=r"augment must keep labels as they are; MoEx mixes them, .* Use it with augm"):
        cooperative(augment=transform)
    cooperative(augment=MoEx(labels="keep"))
