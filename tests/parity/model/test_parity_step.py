"""The step of `CooperativeModel`, the same that a wrapped U-Net takes, equals the authors' training iteration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from latentaug import CooperativeModel, HardExamples, cooperative_backward
from latentaug.augment.masks import LatentMask, Masker, TargetedChannelMask, TargetedSpatialMask
from latentaug.cooperative.output import CooperativeOutput
from tests.parity.model.reference import Reference

EXACT = {"rtol": 1e-9, "atol": 1e-12}
MASKERS = {"channel": TargetedChannelMask, "spatial": TargetedSpatialMask}
STANDARD = ["segmentation", "reconstruction", "shape_from_labels", "shape_from_logits"]
HARD = [
    "hard_image_segmentation",
    "hard_image_reconstruction",
    "shape_from_hard_image",
    "shape_from_hard_segmentation",
]
NETWORKS = {
    "image_encoder": ("model.encoder", "model.decoupler"),
    "segmentation_decoder": ("model.segmentation_decoder",),
    "image_decoder": ("model.image_decoder",),
    "shape_encoder": ("shape_prior.encoder",),
    "shape_decoder": ("shape_prior.decoder",),
}
# The authors' hard pass gives no gradient to scale and shift of the normalisation layers, the image decoder's excepted.
HARD_NORM_FROZEN = ("model.encoder", "model.decoupler", "model.segmentation_decoder", "shape_prior")
Step: TypeAlias = tuple[CooperativeModel, CooperativeOutput]


class Remembering(Masker):
    """A masker that keeps the masks it made."""

    def __init__(self, masker: Masker) -> None:
        super().__init__()
        self.masker = masker
        self.factors = []

    def forward(self, code: Tensor, saliency: Any = None, **options: Any) -> LatentMask:
        mask = self.masker(code, saliency, **options)
        self.factors.append(mask.factor)
        return mask


def cooperative(
    reference: Reference, setting: str, transforms: tuple[Masker, Masker] | None = None
) -> CooperativeModel:
    networks = reference.networks()
    image, shape, percentile, separate = re.fullmatch(
        r"c\d_img-(\w+)_seg-(\w+)_p([\d.]+?)(_separate)?", setting
    ).groups()
    maskers = tuple(Remembering(MASKERS[kind](float(percentile), annealing=0)) for kind in (image, shape))
    return CooperativeModel(
        networks["model"],
        num_classes=networks["shape_prior"].num_classes,
        example=reference.images,
        augment=maskers if transforms is None else transforms,
        hard=HardExamples(
            noise=lambda images, generator: reference.noisy_images,
            separate=separate is not None,
            frozen_norms=HARD_NORM_FROZEN,
        ),
        shape_prior=networks["shape_prior"],
    )


def norm_of(gradients: Iterable[Tensor | None]) -> float:
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None))


def gradients_of(coop: CooperativeModel, losses: Iterable[Tensor]) -> dict[str, Tensor | None]:
    """Gradients of some of the losses, by name; None where the losses don't reach the parameter."""
    names, parameters = zip(*coop.named_parameters(), strict=True)
    gradients = torch.autograd.grad(sum(losses), parameters, retain_graph=True, allow_unused=True)
    return dict(zip(names, gradients, strict=True))


@pytest.fixture
def step(reference: Reference, setting: str) -> Step:
    coop = cooperative(reference, setting)
    return coop, coop(reference.images, reference.labels)


def test_losses(reference: Reference, setting: str, step: Step) -> None:
    _, output = step
    for name, expected in (("std", STANDARD), ("hard", HARD)):
        losses = torch.stack([output.losses[loss] for loss in expected])
        torch.testing.assert_close(losses, reference[f"{setting}__{name}_losses"], **EXACT)
    torch.testing.assert_close(output.loss, sum(output.losses.values()), **EXACT)


def test_masks(reference: Reference, setting: str, step: Step) -> None:
    coop, _ = step
    for masker, name in ((coop.image_transform, "img_mask"), (coop.shape_transform, "seg_mask")):
        (factor,) = masker.factors
        torch.testing.assert_close(factor, reference[f"{setting}__{name}"].float(), rtol=0, atol=0)


def test_hard_examples(reference: Reference) -> None:
    recorded = [setting for setting in reference.settings if f"{setting}__hard_image" in reference.names]
    assert recorded
    for setting in recorded:
        output = cooperative(reference, setting)(reference.images, reference.labels)
        torch.testing.assert_close(output.hard_images, reference[f"{setting}__hard_image"], **EXACT)
        torch.testing.assert_close(output.hard_segmentation, reference[f"{setting}__hard_seg_logits"], **EXACT)
        assert not output.hard_images.requires_grad
        assert not output.hard_segmentation.requires_grad


def test_gradient_norms(reference: Reference, setting: str, step: Step) -> None:
    coop, output = step
    for part, losses in (("std", STANDARD), ("hard", HARD), ("total", STANDARD + HARD)):
        gradients = gradients_of(coop, [output.losses[name] for name in losses])
        norms = [norm_of(g for name, g in gradients.items() if name.startswith(roots)) for roots in NETWORKS.values()]
        torch.testing.assert_close(
            torch.tensor(norms, dtype=torch.float64), reference[f"{setting}__gradnorm_{part}"], **EXACT
        )

        if f"{setting}__gradnorm_{part}__names" not in reference.names:
            continue
        for name, expected in zip(
            reference.strings(f"{setting}__gradnorm_{part}__names"),
            reference[f"{setting}__gradnorm_{part}__values"],
            strict=True,
        ):
            assert norm_of([gradients.pop(name)]) == pytest.approx(float(expected), rel=1e-9, abs=1e-11), name
        assert set(gradients) == set(reference.strings(f"{setting}__nograd_{part}__names"))
        assert all(gradient is None for gradient in gradients.values())


def test_two_stages_give_the_same_gradients(reference: Reference, setting: str, step: Step) -> None:
    coop, output = step
    expected = gradients_of(coop, [output.loss])
    again = cooperative(reference, setting)
    two_stages = cooperative_backward(again, reference.images, reference.labels)
    torch.testing.assert_close(two_stages.losses, output.losses, **EXACT)
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], **EXACT)


def test_running_statistics_are_those_of_the_standard_pass(reference: Reference, setting: str, step: Step) -> None:
    """The authors' are not: their saliency pass moves both decoders', their hard pass the image decoder's once more."""
    coop, _ = step
    expected = reference.buffers("after_std")
    buffers = dict(coop.named_buffers())
    assert buffers.keys() == expected.keys()
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, expected[name], **EXACT)

    after_generation, after_hard = reference.buffers("after_gen"), reference.buffers("after_hard")
    for name in expected:
        decoder = name.startswith(("model.segmentation_decoder", "model.image_decoder"))
        assert torch.equal(after_generation[name], expected[name]) is not decoder
        image_decoder = name.startswith("model.image_decoder")
        assert torch.equal(after_hard[name], after_generation[name]) is not image_decoder


def test_saliency(reference: Reference) -> None:
    """Each code's saliency is the derivative of its own task loss, without the loss's weight."""
    seen = {}

    class Spy(TargetedChannelMask):
        def sample(self, code: Tensor, saliency: Any, generator: Any) -> Tensor:
            seen[self.name] = saliency()
            return super().sample(code, saliency, generator)

    spies = Spy(), Spy()
    spies[0].name, spies[1].name = "z_i_mse", "z_s_ce"
    coop = cooperative(reference, reference.settings[0], spies)
    coop(reference.images, reference.labels)
    for name, saliency in seen.items():
        torch.testing.assert_close(saliency, reference[f"gen__grad_{name}"], rtol=1e-9, atol=1e-15)
    assert len(seen) == 2


def test_losses_in_float32(reference32: Reference, setting: str) -> None:
    output = cooperative(reference32, setting)(reference32.images, reference32.labels)
    for name, expected in (("std", STANDARD), ("hard", HARD)):
        losses = torch.stack([output.losses[loss] for loss in expected])
        torch.testing.assert_close(losses, reference32[f"{setting}__{name}_losses"].float(), rtol=1e-5, atol=0)
