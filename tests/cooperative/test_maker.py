"""Hard examples: the masks of their codes, their residuals, their place in the batch, and the noise on images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.augment.masks import RandomChannelMask, TargetedChannelMask, TargetedSpatialMask
from latentaug.augment.style import MixStyle
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.logits import LogitsReader
from latentaug.cooperative.maker import RESIDUAL, ChangedCode, HardExampleMaker
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
        declared=True,
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
