"""What `CooperativeModel` makes of its arguments."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from latentaug import (
    FTN,
    Codes,
    CooperativeModel,
    DropBlock,
    HardExamples,
    ManifoldMixup,
    MixStyle,
    cooperative_backward,
    find_codes,
    standard_backward,
)
from latentaug.augment.base import LatentTransform

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
        coop = made(example=example)
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
    for codes in ("2", model[2], ["2"], {"image": "2", "shape": "2"}, Codes(*[made(codes="2").image_code] * 2)):
        coop = made(model, codes=codes)
        assert (str(coop.image_code), [str(one) for one in coop.shape_codes]) == ("2", ["2"])
    found = find_codes(model, EXAMPLE)
    coop = made(model, codes=found)
    assert (coop.image_code, coop.shape_codes) == (found.image, [found.shape])


def test_other_names_of_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="codes must name 'image' or 'shape'; got 'mask'"):
        made(codes={"mask": "2"})


# Without a shape prior ----------------------------------------------------------------------------------------------


def test_without_a_shape_prior_there_is_none_and_nothing_is_computed_for_it() -> None:
    coop = made(shape_prior=False)
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
    with_prior, without = made(), made(shape_prior=False)
    without.load_state_dict({k: v for k, v in with_prior.state_dict().items() if not k.startswith("shape_prior")})
    outputs = [coop(EXAMPLE, LABELS, generator=torch.Generator().manual_seed(3)) for coop in (with_prior, without)]
    for name in ("segmentation", "reconstruction"):
        assert torch.equal(outputs[0].losses[name], outputs[1].losses[name])


def test_in_parts_and_at_once_fill_the_same_gradients_without_a_prior() -> None:
    coop, again = made(shape_prior=False), made(shape_prior=False)
    again.load_state_dict(coop.state_dict())
    coop(EXAMPLE, LABELS, generator=torch.Generator().manual_seed(3)).loss.backward()
    cooperative_backward(again, EXAMPLE, LABELS, generator=torch.Generator().manual_seed(3))
    for one, other in zip(coop.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_hard_segmentations_are_made_where_they_are_learned_from() -> None:
    coop = made(shape_prior=False, weights={"hard_code_segmentation": 1.0})
    output = coop(EXAMPLE, LABELS)
    assert "hard_code_segmentation" in output.losses
    assert output.hard_segmentation is not None


# Transforms ---------------------------------------------------------------------------------------------------------


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

    coop = made(augment=Half(), codes="2", hard=HardExamples(noise=0, residual=0))
    output = coop(EXAMPLE, LABELS)
    code = coop.model[:3](EXAMPLE) / 2
    torch.testing.assert_close(output.hard_images, coop.reconstruction(code, (16, 16)), rtol=1e-4, atol=1e-5)


def test_transforms_that_mix_a_whole_pass_or_climb_are_refused() -> None:
    class Climber(MixStyle):
        needs = ("loss_at",)

    with pytest.raises(TypeError, match=r"augment must change one code; ManifoldMixup mixes .* whole pass"):
        made(augment=ManifoldMixup())
    with pytest.raises(TypeError, match="no more than the saliency; Climber asks for loss_at"):
        made(augment=(MixStyle(), Climber()))
