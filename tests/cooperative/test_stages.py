"""The two stages of a step: every loss against the step written out, and what each part of them learns from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug.augment.masks import TargetedChannelMask
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.objective import segmentation_loss
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.stages import HardStage, second_stage
from latentaug.cooperative.step import cooperative_backward
from tests.support.codes import seeded
from tests.support.cooperation import (
    HARD,
    QUIET,
    STANDARD,
    batch,
    case,
    cooperative,
    gradients_of,
    scaled_at,
)

# All losses -----------------------------------------------------------------------------------------------------------


def test_both_stages_equal_the_step_written_out() -> None:
    """By hand: plain hooks, two whole forward passes for the segmentation, no tap."""
    masker = TargetedChannelMask(0.5, annealing=0)
    coop = cooperative(dtype=torch.float64, augment=masker, hard=HardExamples(noise=0, residual=0), dropout=0)
    images, labels = batch(dtype=torch.float64)
    output = coop(images, labels)

    model, head, prior = coop.model, coop.reconstruction, coop.shape_prior
    assert prior is not None
    codes: list[Tensor] = []
    handle = model.get_submodule("bottleneck").register_forward_hook(lambda module, inputs, code: codes.append(code))
    logits, hot = model(images), F.one_hot(labels, 3).movedim(-1, 1).double()
    (code,) = codes
    segmentation = F.cross_entropy(logits, labels)
    reconstruction = F.mse_loss(head(code, images.shape[2:]), images)
    (image_saliency,) = torch.autograd.grad(reconstruction, code, retain_graph=True)
    (shape_saliency,) = torch.autograd.grad(segmentation, code, retain_graph=True)
    with torch.no_grad():
        hard_images = head(masker(code, image_saliency).apply(code), images.shape[2:])
        hard_segmentation = scaled_at(model, {"bottleneck": masker(code, shape_saliency).factor}, images)
    codes.clear()
    hard_logits = model(hard_images)
    terms = {
        "segmentation": segmentation,
        "reconstruction": 0.5 * reconstruction,
        "shape_from_logits": F.cross_entropy(prior((logits / 2).softmax(1)), labels),
        "shape_from_labels": F.cross_entropy(prior(hot), labels),
        "hard_image_segmentation": F.cross_entropy(hard_logits, labels),
        "hard_image_reconstruction": 0.5 * F.mse_loss(head(codes[0], images.shape[2:]), images),
        "shape_from_hard_image": F.cross_entropy(prior((hard_logits / 2).softmax(1)), labels),
        "shape_from_hard_segmentation": F.cross_entropy(prior((hard_segmentation / 2).softmax(1)), labels),
    }
    handle.remove()
    assert {name: term.item() for name, term in output.losses.items()} == pytest.approx(
        {name: term.item() for name, term in terms.items()}, rel=1e-12
    )
    torch.testing.assert_close(output.hard_images, hard_images)
    torch.testing.assert_close(output.hard_segmentation, hard_segmentation)
    parameters = list(coop.parameters())
    for ours, expected in zip(
        torch.autograd.grad(output.loss, parameters),
        torch.autograd.grad(torch.stack([*terms.values()]).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


def test_your_own_loss_gets_logits_and_labels_of_every_segmentation() -> None:
    calls = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        calls.append((tuple(logits.shape), tuple(labels.shape), labels.dtype))
        return segmentation_loss(logits, labels)

    cooperative(loss=loss)(*batch())
    assert calls == [((3, 3, 16, 20), (3, 16, 20), torch.int64)] * 6


def test_separate_stops_the_gradient_from_the_shape_prior_into_the_model() -> None:
    for separate in (False, True):
        coop = cooperative(hard=HardExamples(separate=separate))
        output = coop(*batch())
        loss = output.losses["shape_from_logits"] + output.losses["shape_from_hard_image"]
        reached = torch.autograd.grad(loss, list(coop.model.parameters()), allow_unused=True)
        assert all(gradient is None for gradient in reached) is separate


def test_the_standard_stage_draws_no_mask_and_decodes_no_hard_image() -> None:
    coop, images, labels = case("unet")
    decoded: list[Tensor] = []
    coop.reconstruction.register_forward_hook(lambda module, inputs, output: decoded.append(output))
    generator = seeded()
    coop(images, labels, generator=generator, stage="standard")
    assert len(decoded) == 1
    noise_alone = seeded()
    torch.randn(images.shape, generator=noise_alone)
    assert torch.equal(generator.get_state(), noise_alone.get_state())
    first = coop(images, labels, generator=seeded(), stage="first")
    assert len(decoded) == 3
    assert list(first.losses) == STANDARD


def test_the_second_stage_goes_on_from_the_hard_examples_of_the_first() -> None:
    coop, images, labels = case("shortcuts", dropout=0)
    first = coop(images, labels, generator=seeded(), stage="first")
    made = second_stage(first)
    assert made == HardStage(first.hard_images, first.hard_segmentation, first.hard_samples)
    again, *_ = case("shortcuts", dropout=0)
    whole = again(images, labels, generator=seeded())
    hard = coop(images, labels, stage=made)
    torch.testing.assert_close({**first.losses, **hard.losses}, whole.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(first.loss + hard.loss, whole.loss, rtol=1e-12, atol=0)


# The loss on hard segmentations, which the paper doesn't have ---------------------------------------------------------


def test_the_loss_on_hard_segmentations_reaches_all_of_the_model() -> None:
    coop = cooperative(weights={"hard_code_segmentation": 0.5})
    images, labels = batch()
    output: CooperativeOutput = coop(images, labels, generator=seeded())
    loss = output.losses["hard_code_segmentation"]
    assert output.hard_segmentation is not None
    torch.testing.assert_close(loss.detach(), 0.5 * segmentation_loss(output.hard_segmentation, labels))
    assert not output.hard_segmentation.requires_grad
    torch.testing.assert_close(output.loss, torch.stack([*output.losses.values()]).sum())
    reached = torch.autograd.grad(loss, list(coop.model.parameters()), retain_graph=True, allow_unused=True)
    assert all(gradient is not None for gradient in reached)


def test_the_loss_on_hard_segmentations_changes_nothing_else() -> None:
    images, labels = batch(dtype=torch.float64)
    with_it, without = (
        cooperative(dtype=torch.float64, weights=weights, dropout=0)
        for weights in ({"hard_code_segmentation": 1}, None)
    )
    one, other = (cooperative_backward(coop, images, labels, generator=seeded()) for coop in (with_it, without))
    extra = one.losses.pop("hard_code_segmentation")
    assert list(other.losses) == STANDARD + HARD
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.loss - extra, other.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(dict(with_it.named_buffers()), dict(without.named_buffers()), rtol=1e-12, atol=0)


# Normalisation --------------------------------------------------------------------------------------------------------


def test_only_the_named_networks_learn_no_scale_and_shift_from_hard_examples() -> None:
    coop = cooperative(hard=HardExamples(frozen_norms=("model.up", "shape_prior")))
    images, labels = batch()
    hard = coop(images, labels, stage=second_stage(coop(images, labels, stage="first")))
    assert list(hard.losses) == HARD
    names, parameters = zip(*coop.named_parameters(), strict=True)
    reached = dict(zip(names, torch.autograd.grad(hard.loss, parameters, allow_unused=True), strict=True))
    norms = {
        f"{path}.{kind}"
        for root in ("model.up", "shape_prior")
        for path, module in coop.named_modules()
        if path.startswith(root) and isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    assert {name for name, gradient in reached.items() if gradient is None} == norms


def test_an_error_in_the_hard_stage_leaves_no_trace() -> None:
    def fail(logits: Tensor, labels: Tensor) -> Tensor:
        raise ArithmeticError("no loss today")

    coop = cooperative(loss=fail, hard=HardExamples(frozen_norms=("model", "shape_prior")))
    images, labels = batch()
    kept = {name: id(parameter) for name, parameter in coop.named_parameters()}
    statistics = {name: buffer.clone() for name, buffer in coop.named_buffers()}

    with pytest.raises(ArithmeticError, match="no loss today"):
        coop(images, labels, stage=HardStage(images, torch.zeros(3, 3, 16, 20)))
    assert {name: id(parameter) for name, parameter in coop.named_parameters()} == kept
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in coop.named_buffers())
    assert all(module.track_running_stats for module in coop.modules() if isinstance(module, nn.BatchNorm2d))
    assert all("forward" not in vars(module) for module in coop.modules())


# Pixels that don't count ----------------------------------------------------------------------------------------------


def test_ignored_pixels_change_nothing() -> None:
    coop = cooperative(ignore_index=255, hard=QUIET, augment=TargetedChannelMask(0.5, 0), dropout=0)
    images, labels = batch()
    labels[:, :8] = 255
    seen: list[Tensor] = []
    assert coop.shape_prior is not None
    coop.shape_prior.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    output = coop(images, labels)
    hot = next(given for given in seen if not given.requires_grad)
    assert not hot[:, :, :8].any()
    assert torch.equal(hot[:, :, 8:].sum(1), torch.ones(3, 8, 20))
    valid = F.cross_entropy(output.logits[:, :, 8:], labels[:, 8:])
    torch.testing.assert_close(output.losses["segmentation"], valid)


def test_no_valid_pixel_gives_finite_gradients() -> None:
    coop = cooperative(augment=TargetedChannelMask())
    images, labels = batch()
    with pytest.warns(UserWarning, match="all zero or not finite"):
        output = cooperative_backward(coop, images, torch.full_like(labels, -100))
    assert all(term == 0 for name, term in output.losses.items() if "reconstruction" not in name)
    assert all(gradient.isfinite().all() for gradient in gradients_of(coop).values() if gradient is not None)
