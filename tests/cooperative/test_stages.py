"""The two stages of a step: every loss against the step written out, and what each part of them learns from."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug.augment.masks import RandomChannelMask, TargetedChannelMask
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.objective import HARD as HARD_LOSSES
from latentaug.cooperative.objective import segmentation_loss
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.stages import HardStage, second_stage
from latentaug.cooperative.step import cooperative_backward
from latentaug.tracing.isolation import frozen_norm_statistics
from tests.models.segmenters import Levels, SkipNet
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
    small_ftn,
)
from tests.support.tiny_training import Wrapper

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

    coop = cooperative(loss=loss)
    calls.clear()
    coop(*batch())
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
    made = []

    def fail(logits: Tensor, labels: Tensor) -> Tensor:
        if made:
            raise ArithmeticError("no loss today")
        return segmentation_loss(logits, labels)

    coop = cooperative(loss=fail, hard=HardExamples(frozen_norms=("model", "shape_prior")))
    made.append(coop)
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


# Without heads --------------------------------------------------------------------------------------------------------


def headless(dropout: float = 0.1, **options: Any) -> CooperativeModel:
    """Return a network with levels, wrapped as it is by default, but for hard examples of every batch."""
    options["hard"] = dataclasses.replace(options.get("hard", HardExamples()), every=options.pop("every", 1))
    torch.manual_seed(0)
    network = Levels(dropout=dropout).double()
    return CooperativeModel(network, num_classes=3, example=levels_batch()[0], **options)


def levels_batch() -> tuple[Tensor, Tensor]:
    return batch(size=(32, 48), dtype=torch.float64)


def test_by_default_a_network_learns_by_its_own_loss_and_from_masked_levels() -> None:
    """By hand: plain hooks, and two whole passes."""
    masker = TargetedChannelMask(0.5, annealing=0)
    coop, (images, labels) = headless(augment=masker, dropout=0), levels_batch()
    assert (coop.reconstruction, coop.shape_prior, coop.image_code) == (None, None, None)
    assert [str(code) for code in coop.shape_codes] == ["encoder[2]", "encoder[3]"]
    assert [name for name, _ in coop.named_parameters()] == [f"model.{n}" for n, _ in coop.model.named_parameters()]
    net, twin = coop.model, copy.deepcopy(coop.model)
    output = cooperative_backward(coop, images, labels)

    levels = twin.encoder(images)
    read = [level.detach().requires_grad_() for level in levels]
    logits = twin.head(twin.decoder(read))
    loss = F.cross_entropy(logits, labels)
    saliencies = torch.autograd.grad(loss, read[2:])
    masked = [masker(code, s).apply(code) for code, s in zip(levels[2:], saliencies, strict=True)]
    loss = F.cross_entropy(twin.head(twin.decoder(levels)), labels)
    with frozen_norm_statistics(twin):
        hard = F.cross_entropy(twin.head(twin.decoder([*levels[:2], *masked])), labels)
    (loss + hard).backward()
    assert [*output.losses] == ["segmentation", "hard_code_segmentation"]
    torch.testing.assert_close([*output.losses.values()], [loss.detach(), hard.detach()])
    for ours, expected in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("heads", [{}, {"shape_prior": True}, {"reconstruction": True}], ids=str)
def test_where_the_graph_is_cut_at_the_codes_gradients_are_those_of_the_whole(heads: dict[str, Any]) -> None:
    coop, (images, labels) = headless(weights={"hard_code_segmentation": 1}, **heads), levels_batch()
    whole = copy.deepcopy(coop)
    assert coop.can_cut(images)
    for model, step in ((coop, cooperative_backward), (whole, None)):
        torch.manual_seed(1)
        if step is None:
            model(images, labels, generator=seeded()).loss.backward()
        else:
            step(model, images, labels, generator=seeded())
    for ours, expected in zip(coop.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-9, atol=1e-13)


def test_what_reaches_the_decoder_past_the_codes_forbids_the_cut() -> None:
    torch.manual_seed(0)
    images, labels = batch()
    coop = CooperativeModel(SkipNet(), num_classes=3, example=images)
    assert not coop.can_cut(images)
    output = cooperative_backward(coop, images, labels)
    assert [*output.losses] == ["segmentation", "hard_code_segmentation"]
    assert all(parameter.grad is not None for parameter in coop.parameters())


def test_the_encoder_is_run_once_forward_and_back() -> None:
    coop, (images, labels) = headless(), levels_batch()
    cooperative_backward(coop, images, labels)  # the first time, the model is looked over as well
    calls: list[str] = []
    for name in ("encoder", "decoder"):
        part = coop.model.get_submodule(f"{name}.blocks.1.0")
        part.register_forward_hook(lambda *_, name=name: calls.append(f"{name} forward"))
        part.register_full_backward_hook(lambda *_, name=name: calls.append(f"{name} backward"))
    cooperative_backward(coop, images, labels)
    assert calls == ["encoder forward", *["decoder forward", "decoder backward"] * 2, "encoder backward"]


# What weighs nothing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "heads",
    [{}, {"shape_prior": True}, {"reconstruction": True}, {"reconstruction": True, "shape_prior": True}],
    ids=str,
)
def test_without_hard_examples_a_network_trains_bit_for_bit_as_it_would_alone(heads: dict[str, Any]) -> None:
    coop, (images, labels) = headless(weights=dict.fromkeys(HARD_LOSSES, 0.0), **heads), levels_batch()
    alone = copy.deepcopy(coop.model)
    trained = torch.optim.Adam(coop.parameters(), lr=1e-2)
    expected = torch.optim.Adam(alone.parameters(), lr=1e-2)
    for step in range(4):
        torch.manual_seed(step)
        trained.zero_grad()
        cooperative_backward(coop, images, labels)
        trained.step()
        torch.manual_seed(step)
        expected.zero_grad()
        F.cross_entropy(alone(images), labels).backward()
        expected.step()
    for (name, ours), (_, other) in zip(coop.model.state_dict().items(), alone.state_dict().items(), strict=True):
        assert torch.equal(ours, other), name


def test_heads_that_weigh_nothing_are_not_called() -> None:
    off = dict.fromkeys([*STANDARD[1:], *HARD_LOSSES], 0.0)
    coop, (images, labels) = headless(reconstruction=True, shape_prior=True, weights=off), levels_batch()
    called: list[str] = []
    for name in ("reconstruction_head", "shape_prior", "model"):
        coop.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    output = cooperative_backward(coop, images, labels)
    assert called == ["model"]
    assert [*output.losses] == ["segmentation"]
    assert torch.equal(output.refined, output.logits)


def test_hard_examples_are_made_of_every_third_batch_unless_told_otherwise() -> None:
    (images, _), wrap = levels_batch(), functools.partial(CooperativeModel, num_classes=3)
    network = Levels().double()
    assert wrap(network, example=images).maker.every == 3
    assert wrap(network, example=images, hard=HardExamples(every=2)).maker.every == 2
    assert wrap(network, example=images, reconstruction=True, hard=HardExamples(mix=0.5)).maker.every == 1
    assert cooperative(small_ftn).maker.every == 1


@pytest.mark.parametrize("heads", [{}, {"reconstruction": True, "shape_prior": True}], ids=["headless", "heads"])
@pytest.mark.parametrize("wrap", [nn.Identity(), Wrapper], ids=["inside", "wrapped"])
def test_hard_examples_are_made_of_every_so_many_batches(heads: dict[str, Any], wrap: Any) -> None:
    coop, (images, labels) = headless(every=3, **heads), levels_batch()
    made = []
    for _ in range(5):
        output = cooperative_backward(wrap(coop), images, labels)
        made.append(any(name in HARD_LOSSES or "hard" in name for name in output.losses))
    assert made == [True, False, False, True, False]
    again = headless(every=3, **heads)
    again.load_state_dict(coop.state_dict())
    assert not again.has_second_stage()
    assert again.hard_schedule is not None
    assert [again.hard_schedule() for _ in range(2)] == [False, True]


def test_heads_learn_from_a_network_without_a_gradient_into_it() -> None:
    """Unless told otherwise; and one switch each."""
    (images, labels), off = levels_batch(), dict.fromkeys([*HARD_LOSSES, "segmentation"], 0.0)
    for given in ({}, {"separate": False}, {"separate_decoder": False}):
        coop = headless(reconstruction=True, shape_prior=True, weights=off, hard=HardExamples(**given))
        cooperative_backward(coop, images, labels)
        assert all(parameter.grad is not None for parameter in coop.reconstruction.parameters())
        assert all(parameter.grad is not None for parameter in coop.shape_prior.parameters())
        reached = any(parameter.grad is not None for parameter in coop.model.parameters())
        assert reached == bool(given)


# Hard images within the batch -----------------------------------------------------------------------------------------


def test_hard_images_take_the_place_of_some_of_the_batch() -> None:
    hard = HardExamples(mix=0.6, residual=1.0)
    coop, (images, labels) = headless(reconstruction=True, hard=hard, dropout=0), levels_batch()
    cooperative_backward(coop, images, labels)
    seen: list[Tensor] = []
    coop.model.head.register_forward_hook(lambda *_: seen.append(torch.zeros(())))
    coop.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    coop.zero_grad()
    before = copy.deepcopy(coop)
    output = cooperative_backward(coop, images, labels, generator=seeded())
    part, whole, ended = seen  # up to the image code, and the one pass
    assert ended.ndim == 0
    assert output.hard_samples is not None
    assert output.hard_samples.tolist() == sorted({*output.hard_samples.tolist()})
    assert torch.equal(part, images[output.hard_samples])
    assert len(part) == 2
    assert torch.equal(whole[output.hard_samples], output.hard_images)
    kept = [i for i in range(3) if i not in output.hard_samples.tolist()]
    assert torch.equal(whole[kept], images[kept])
    assert not torch.equal(output.hard_images, part)
    assert [*output.losses] == ["segmentation", "reconstruction"]
    torch.testing.assert_close(output.losses["segmentation"], F.cross_entropy(output.logits, labels))
    # Statistics are those of the one pass.
    twin = before.model
    with torch.no_grad():
        twin(whole)
    for (name, one), (_, other) in zip(coop.model.named_buffers(), twin.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_hard_images_are_the_images_and_what_the_change_makes_of_what_is_decoded() -> None:
    hard = HardExamples(mix=1.0)
    coop, (images, _) = headless(reconstruction=True, hard=hard, augment=RandomChannelMask(0.0)), levels_batch()
    mixed, hard_images, places = coop.maker.mixed(coop.model, coop.reconstruction, images, seeded())
    torch.testing.assert_close(mixed, images)  # nothing is changed in the code
    assert torch.equal(mixed, hard_images)
    assert places.tolist() == [0, 1, 2]


def test_they_come_of_the_code_that_the_decoder_learns_from_where_a_layer_is_called_again() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.block, self.up = nn.Conv2d(1, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 3, 4, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.up(self.block(self.block(self.down(images))))

    images, labels = levels_batch()
    hard, mask = HardExamples(mix=1.0), RandomChannelMask(0.0)
    options = {"codes": "block", "reconstruction": True, "hard": hard, "augment": mask}
    coop = CooperativeModel(Again().double(), num_classes=3, example=images, **options)
    seen: list[Tensor] = []
    coop.reconstruction.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for _ in range(2):
        seen.clear()
        cooperative_backward(coop, images, labels)
        of_the_mix, of_the_pass = seen
        assert torch.equal(of_the_mix[: len(images)], of_the_pass)  # the mask changes nothing


def test_mixing_takes_an_image_decoder() -> None:
    with pytest.raises(ValueError, match="mix makes hard images, which takes an image decoder"):
        headless(hard=HardExamples(mix=0.5))


def test_the_image_decoder_works_at_half_the_resolution() -> None:
    coop, (images, labels) = headless(reconstruction=True), levels_batch()
    sizes: list[Any] = []
    coop.reconstruction.register_forward_hook(lambda module, inputs, out: sizes.append(tuple(out.shape[2:])))
    output = cooperative_backward(coop, images, labels)
    assert {*sizes} == {(16, 24)}
    assert output.hard_images.shape == images.shape


class OutOfPlace(nn.Module):
    """Standardises its images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU())
        self.decoder = nn.ConvTranspose2d(8, 3, 4, 4)

    def standardised(self, images: Tensor) -> Tensor:
        return (images - 0.5) * 2

    def forward(self, images: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.encoder(self.standardised(images)))
        return decoded


class InPlace(OutOfPlace):
    """The same, and changes what it is given."""

    def standardised(self, images: Tensor) -> Tensor:
        return images.sub_(0.5).mul_(2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hard": HardExamples(every=1)},
        {"reconstruction": True, "hard": HardExamples(mix=0.5)},
        {"reconstruction": True, "hard": HardExamples(mix=1.0)},
        {"reconstruction": True, "shape_prior": True, "hard": HardExamples(every=1, separate=False, noise=0.05)},
        {"reconstruction": True, "hard": HardExamples(every=1)},
    ],
    ids=["default", "every batch", "mix", "mix all", "paper", "two passes"],
)
def test_a_model_that_changes_its_images_in_place_is_trained_as_one_that_does_not(options: dict[str, Any]) -> None:
    images, labels = torch.rand(4, 1, 16, 16), torch.randint(3, (4, 16, 16))
    found = []
    for kind in (OutOfPlace, InPlace):
        torch.manual_seed(0)
        example = images.clone()
        model = CooperativeModel(kind(), num_classes=3, example=example, **options)
        assert torch.equal(example, images)
        outputs = [cooperative_backward(model, images.clone(), labels, generator=seeded(n)) for n in range(3)]
        found.append([{name: float(value) for name, value in output.losses.items()} for output in outputs])
    assert found[0] == [pytest.approx(losses, rel=1e-6) for losses in found[1]]


def test_what_is_scored_is_corrected_whatever_the_corrections_weigh_in_training() -> None:
    coop, (images, labels) = headless(shape_prior=True, weights={"shape_from_logits": 0.0}), levels_batch()
    output = coop.eval()(images, labels)
    assert torch.equal(output.refined, coop.refine(output.logits))
    assert "shape_from_logits" not in output.losses
    assert coop.train()(images, labels).refined is not None


@pytest.mark.parametrize("hard", [HardExamples(mix=0.5), HardExamples(every=1)], ids=["in the pass", "two passes"])
def test_hard_images_leave_no_cast_weights_to_the_pass_with_gradients(hard: HardExamples) -> None:
    coop, (images, labels) = headless(reconstruction=True, hard=hard), levels_batch()
    coop, images, cached = coop.float(), images.float(), list[bool]()

    def note(module: nn.Module, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            cached.append(torch.is_autocast_cache_enabled())

    for part in (coop.reconstruction, coop.model):
        part.register_forward_pre_hook(note)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            coop(images, labels)
            assert torch.is_autocast_cache_enabled()
    assert cached
    assert not any(cached)
