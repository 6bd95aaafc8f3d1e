"""Hard examples: their options, the masks of their codes, their residuals and the noise on training images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.augment.masks import RandomChannelMask, TargetedChannelMask, TargetedSpatialMask
from latentaug.augment.style import MixStyle
from latentaug.cooperative.hard_examples import RESIDUAL, ChangedCode, HardExampleMaker, HardExamples
from latentaug.cooperative.logits import LogitsReader
from latentaug.layout import Layout
from latentaug.tracing.location import Location
from tests.models.segmenters import Tokens
from tests.support.codes import seeded
from tests.support.cooperation import (
    QUIET,
    Spy,
    batch,
    code_at,
    cooperative,
    count_saliencies,
    scaled_at,
    small_ftn,
)

# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1.5, True, "2"])
def test_other_periods_than_whole_numbers_of_batches_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="saliency_every must be a whole number of batches, 1 or more; got"):
        HardExamples(saliency_every=value)


@pytest.mark.parametrize("name", ["fraction", "scale"])
def test_fractions_outside_their_range_are_refused(name: str) -> None:
    given: dict[str, Any] = {name: 1.5}
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\]; got 1.5"):
        HardExamples(**given)
    given = {name: 0}
    with pytest.raises(ValueError, match=rf"{name} must be above 0; got 0. To train without hard examples"):
        HardExamples(**given)


def test_residuals_that_are_no_fraction_are_refused() -> None:
    with pytest.raises(ValueError, match=r"residual must be in \[0, 1\]; got 2"):
        HardExamples(residual=2)
    with pytest.raises(ValueError, match=r"residual must be a pair \(low, high\) with low <= high; got \(1, 0\)"):
        HardExamples(residual=(1, 0))
    everything: Any = "all"
    with pytest.raises(TypeError, match="residual must be a number or a pair"):
        HardExamples(residual=everything)


@pytest.mark.parametrize("noise", [-0.1, float("inf"), float("nan"), "0.1", None])
def test_other_noise_than_a_deviation_or_a_callable_is_refused(noise: Any) -> None:
    with pytest.raises(ValueError, match=r"noise must be 0 or more, or a callable \(images, generator\); got"):
        HardExamples(noise=noise)


def test_one_name_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match="frozen_norms must be a list of names; got 'model'"):
        HardExamples(frozen_norms="model")


def test_options_become_plain_numbers_and_tuples_and_compare_by_them() -> None:
    given = HardExamples(residual=[0, 1], fraction=1, frozen_norms=["model"])  # type: ignore[arg-type]
    assert given == HardExamples(residual=(0.0, 1.0), frozen_norms=("model",))
    assert (given.residual, given.fraction, given.frozen_norms) == ((0.0, 1.0), 1.0, ("model",))
    assert hash(given) == hash(HardExamples(residual=(0.0, 1.0), frozen_norms=("model",)))


def test_options_are_shown_where_they_are_on() -> None:
    assert repr(HardExamples()) == "HardExamples()"
    assert repr(HardExamples(fraction=0.5, scale=0.25)) == "HardExamples(fraction=0.5, scale=0.25)"
    every = HardExamples(residual=1, noise=0, saliency_every=2, frozen_norms=["model"], separate=True)
    assert eval(repr(every)) == every


# Masks ----------------------------------------------------------------------------------------------------------------


def test_saliency_is_computed_only_for_a_masker_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = count_saliencies(monkeypatch)
    images, labels = batch()
    cooperative(augment=RandomChannelMask())(images, labels)
    assert counted == []
    cooperative(augment=(RandomChannelMask(), TargetedSpatialMask()))(images, labels)
    assert counted == [1]
    cooperative(augment=TargetedChannelMask(), codes=["down", "bottleneck"])(images, labels)
    assert counted == [1, 1, 2]  # one for the image code, one for all shape codes together


def test_every_layer_of_several_is_masked_by_its_own_saliency() -> None:
    spy = Spy(TargetedChannelMask(0.5, annealing=0))
    coop = cooperative(codes=["down", "bottleneck"], augment=(RandomChannelMask(), spy), hard=QUIET, dropout=0)
    images, labels = batch()
    output = coop(images, labels)
    down, bottleneck = spy.calls
    assert down.factor.shape == (3, 8, 1, 1)
    assert bottleneck.factor.shape == (3, 16, 1, 1)
    assert coop.image_code.name == "bottleneck"
    with torch.no_grad():
        expected = scaled_at(coop.model, {"down": down.factor, "bottleneck": bottleneck.factor}, images)
    torch.testing.assert_close(output.hard_segmentation, expected)


def test_tokens_are_masked_along_channels_and_their_prefix_stays() -> None:
    channels, positions = Spy(TargetedChannelMask(0.5, 0)), Spy(TargetedSpatialMask(0.5, 0))
    coop = cooperative(Tokens, num_classes=2, codes="block", size=(16, 16), augment=(channels, positions))
    coop(*batch(2, (16, 16)))
    assert coop.image_code.layout == Layout(channel_dim=-1, prefix_tokens=1)
    (call,) = channels.calls
    assert (call.factor[:, 1:] == call.factor[:, 1:2]).all()
    assert (call.factor[:, 1] == 0).sum(-1).tolist() == [3, 3, 3]
    (call,) = positions.calls
    assert call.factor.shape == (3, 17, 1)
    assert (call.factor == 0).sum((1, 2)).tolist() == [8, 8, 8]
    for spy in (channels, positions):
        assert (spy.calls[0].factor[:, 0] == 1).all()


def test_a_changed_code_is_shown_with_channels_first_and_a_factor_only_of_a_mask() -> None:
    code = torch.randn(2, 5, 3, generator=seeded())
    saliency = torch.randn(2, 5, 3, generator=seeded(1))
    location = Location("block", (), Layout(channel_dim=-1, prefix_tokens=1), (2, 5, 3), (4,))
    mask = TargetedSpatialMask(0.5, 0)(code, saliency, layout=location.layout)
    seen, factor = ChangedCode(location, code, lambda: saliency, mask).shown()
    assert torch.equal(seen, saliency[:, 1:].transpose(1, 2))
    assert factor is not None
    assert torch.equal(factor, mask.factor[:, 1:].transpose(1, 2))
    change = MixStyle(p=1)(code, layout=location.layout, generator=seeded())
    assert ChangedCode(location, code, lambda: saliency, change).shown()[1] is None


# Residuals ------------------------------------------------------------------------------------------------------------


def test_residuals_are_kept_unless_the_model_declares_its_image_code() -> None:
    assert cooperative().maker.residual == RESIDUAL == (0, 1)
    assert cooperative(small_ftn).maker.residual == 0
    assert cooperative(small_ftn, codes="decoupler").maker.residual == RESIDUAL
    assert cooperative(hard=HardExamples(residual=0)).maker.residual == 0
    assert cooperative(small_ftn, hard=HardExamples(residual=(0.5, 1))).maker.residual == (0.5, 1)


@pytest.mark.parametrize("image_range", [(0.0, 1.0), (-2.0, 3.0), None])
@pytest.mark.parametrize("residual", [0.25, 1.0])
def test_a_fraction_of_what_an_image_has_beyond_its_reconstruction_is_added(
    residual: float, image_range: tuple[float, float] | None
) -> None:
    def made(fraction: float) -> Any:
        hard = HardExamples(noise=0, residual=fraction)
        return cooperative(dtype=torch.float64, image_range=image_range, hard=hard, dropout=0)

    images, labels = batch(dtype=torch.float64)
    twin = made(0)
    decoded = twin(images, labels, generator=seeded()).hard_images
    code = code_at(twin.model, twin.image_code.name, images)
    expected = decoded + residual * (images - twin.reconstruction(code, images.shape[2:]).detach())
    if image_range is not None:
        expected = expected.clamp(*image_range)
    output = made(residual)(images, labels, generator=seeded())
    assert not output.hard_images.requires_grad
    torch.testing.assert_close(output.hard_images, expected, rtol=1e-10, atol=1e-12)
    assert not torch.equal(output.hard_images, images)


def test_of_a_pair_each_sample_has_a_fraction_of_its_own() -> None:
    images, labels = batch(dtype=torch.float64)
    options: dict[str, Any] = {"augment": TargetedChannelMask(0.0), "image_range": None}
    coop = cooperative(dtype=torch.float64, hard=HardExamples(residual=(0.25, 0.75)), **options)
    hard, again, other = (coop.explain(images, labels, generator=seeded(seed)).hard_images for seed in (0, 0, 1))
    coop.hard = HardExamples(residual=0)
    reconstructed = coop.explain(images, labels, generator=seeded()).hard_images
    fractions = ((hard - reconstructed) / (images - reconstructed)).flatten(1)
    torch.testing.assert_close(fractions, fractions[:, :1].expand_as(fractions), rtol=1e-6, atol=0)
    assert all(0.25 <= fraction <= 0.75 for fraction in fractions[:, 0].tolist())
    assert len(set(fractions[:, 0].tolist())) == len(images)
    assert torch.equal(hard, again)
    assert not torch.equal(hard, other)


def test_where_nothing_is_masked_the_whole_residual_makes_the_image() -> None:
    images, labels = batch()
    coop = cooperative(hard=HardExamples(residual=1.0), augment=TargetedChannelMask(0.0))
    assert torch.equal(coop(images, labels, generator=seeded()).hard_images, images)
    assert torch.equal(coop.explain(images, labels, generator=seeded()).hard_images, images)


# Noise ----------------------------------------------------------------------------------------------------------------


def maker_of(image_range: tuple[float, float] | None, settings: HardExamples) -> HardExampleMaker:
    location = Location("code", (), Layout(), (2, 4, 4, 4), (4, 4))
    transforms = RandomChannelMask(), RandomChannelMask()
    maker = HardExampleMaker(
        residual=0.0,
        codes=(location, [location]),
        transforms=transforms,
        reader=LogitsReader(3, None),
        image_range=image_range,
    )
    maker.settings = settings
    return maker


def test_noise_is_relative_to_the_range_and_clamped_to_it() -> None:
    images, _ = batch()
    normal = torch.randn(images.shape, generator=seeded())
    for low, high in ((0.0, 1.0), (-2.0, 3.0)):
        noisy = maker_of((low, high), HardExamples(noise=0.5)).noisy(images, seeded())
        torch.testing.assert_close(noisy, (images + 0.5 * (high - low) * normal).clamp(low, high))


def test_noise_on_images_without_bounds_is_relative_to_their_deviation() -> None:
    images = 10 * batch()[0]
    normal = torch.randn(images.shape, generator=seeded())
    noisy = maker_of(None, HardExamples(noise=0.1)).noisy(images, seeded())
    torch.testing.assert_close(noisy, images + 0.1 * images.std() * normal)


def test_the_model_is_given_the_noisy_images_and_noise_of_your_own() -> None:
    seen: list[Tensor] = []
    coop = cooperative(hard=HardExamples(noise=0.5))
    coop.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images, labels = batch(size=(64, 64))
    coop(images, labels)  # the first time, the model is looked over as well
    seen.clear()
    coop(images, labels, generator=seeded())
    expected = (images + 0.5 * torch.randn(images.shape, generator=seeded())).clamp(0, 1)
    torch.testing.assert_close(seen[0], expected)
    assert (seen[0].min(), seen[0].max()) == (0, 1)
    assert ((seen[0] > 0) & (seen[0] < 1)).float().mean() < 0.9

    seen.clear()
    coop.hard = HardExamples(noise=lambda images, generator: images.flip(0))
    coop(images, labels)
    assert torch.equal(seen[0], images.flip(0))


def test_noise_on_images_without_bounds_has_the_deviation_it_is_given() -> None:
    seen: list[Tensor] = []
    coop = cooperative(image_range=None, hard=HardExamples(noise=0.1))
    coop.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images, labels = batch(size=(64, 64))
    coop(10 * images, labels)  # the first time, the model is looked over as well
    seen.clear()
    coop(10 * images, labels)
    added = seen[0] - 10 * images
    assert (added.std() / (10 * images).std()).item() == pytest.approx(0.1, rel=0.05)
