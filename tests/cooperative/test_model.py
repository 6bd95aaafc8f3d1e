"""The cooperative model: its modes, its predictions and explanations, and that it leaves the user's model alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.objective import segmentation_loss
from latentaug.cooperative.step import cooperative_backward
from latentaug.nets.heads import ShapePrior
from tests.models.segmenters import Returning, SkipNet
from tests.support.codes import seeded
from tests.support.cooperation import (
    HARD,
    SHORTCUTS,
    STANDARD,
    WAYS,
    Wrap,
    assert_same_gradients,
    batch,
    case,
    cooperative,
    small_ftn,
)
from tests.support.traces import traces

# Eval mode ------------------------------------------------------------------------------------------------------------


def test_eval_mode_without_labels_is_the_model() -> None:
    coop = cooperative(lambda: Returning(lambda logits: {"out": logits, "name": "mine"}), codes="bottleneck").eval()
    images, _ = batch()
    output = coop(images)
    assert output["name"] == "mine"
    assert torch.equal(output["out"], coop.model(images)["out"])


def test_eval_mode_with_labels_gives_the_standard_terms() -> None:
    coop = cooperative(hard=HardExamples(noise=0.5))
    images, labels = batch()
    coop(images, labels)
    buffers = {name: buffer.clone() for name, buffer in coop.named_buffers()}
    coop.eval()
    with torch.no_grad():
        first, second = coop(images, labels), coop(images, labels)
    assert list(first.losses) == STANDARD
    assert torch.equal(first.loss, second.loss)
    assert first.hard_images is first.hard_segmentation is None
    torch.testing.assert_close(first.losses["segmentation"], segmentation_loss(coop(images), labels))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in coop.named_buffers())


# Predictions ----------------------------------------------------------------------------------------------------------


def test_refine_feeds_each_result_back() -> None:
    coop = cooperative().eval()
    assert coop.shape_prior is not None
    logits = torch.randn(2, 3, 16, 20, generator=seeded())
    assert torch.equal(coop.refine(logits, steps=0), logits)
    once = coop.shape_prior((logits / 2).softmax(1))
    torch.testing.assert_close(coop.refine(logits), once)
    torch.testing.assert_close(coop.refine(logits, steps=2), coop.shape_prior((once / 2).softmax(1)))


@pytest.mark.parametrize("num_classes", [1, 3])
def test_predictions_are_the_labels_of_eval_mode_and_leave_every_mode_as_it_was(num_classes: int) -> None:
    coop = cooperative(num_classes=num_classes)
    coop.model.get_submodule("stem").eval()
    images, _ = batch()
    modes = [module.training for module in coop.modules()]
    buffers = [buffer.clone() for buffer in coop.buffers()]
    labels, refined = coop.predict(images, refine=0), coop.predict(images, refine=2)
    assert modes == [module.training for module in coop.modules()]
    assert all(map(torch.equal, buffers, coop.buffers()))
    coop.eval()
    for found, logits in ((labels, coop(images)), (refined, coop.refine(coop(images), steps=2))):
        assert torch.equal(found, logits.argmax(1) if num_classes > 1 else (logits[:, 0] > 0).long())
        assert found.dtype == torch.int64


# Leaving things alone -------------------------------------------------------------------------------------------------


def test_the_users_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = SkipNet()
    keys = list(model.state_dict())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    before = traces(model, buffers=False)
    coop = cooperative(lambda: model)
    cooperative_backward(coop, *batch())
    assert coop.model is model
    assert list(model.state_dict()) == keys
    assert traces(model, buffers=False) == before
    for name, module in model.named_modules():
        assert set(vars(module)) == attributes[name], name
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert module.training


def test_copies_and_pickles_work_on_their_own() -> None:
    coop, images, labels = case("ftn")
    coop(images, labels)
    for other in (copy.deepcopy(coop), pickle.loads(pickle.dumps(coop))):
        assert other.model is not coop.model
        assert other.reconstruction is other.model.image_decoder
        before = [parameter.clone() for parameter in coop.parameters()]
        expected = coop(images, labels, generator=seeded()).loss
        torch.testing.assert_close(other(images, labels, generator=seeded()).loss, expected)
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        cooperative_backward(other, images, labels)
        optimizer.step()
        assert all(parameter.grad is None for parameter in coop.parameters())
        assert all(map(torch.equal, before, coop.parameters()))
        assert not all(map(torch.equal, before, other.parameters()))


def test_same_generator_same_step_and_the_global_stream_is_left_alone() -> None:
    coop, images, labels = case("ftn")
    before = torch.get_rng_state()
    first, second, third = (coop(images, labels, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.loss, second.loss)
    assert not torch.equal(first.hard_images, third.hard_images)


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_a_channel_axis_and_other_types_are_the_same_labels(dtype: torch.dtype) -> None:
    coop, images, labels = case("ftn", torch.float32)
    expected = coop(images, labels, generator=seeded()).loss
    again = coop(images, labels.unsqueeze(1).to(dtype), generator=seeded()).loss
    torch.testing.assert_close(again, expected)


# What is shown --------------------------------------------------------------------------------------------------------


def test_what_the_submodules_do_not_show_is_shown() -> None:
    coop = cooperative(small_ftn)
    assert "image_code=encoder, shape_code=decoupler, image_range=(0.0, 1.0), hard=HardExamples(" in repr(coop)
    assert "hard_" not in repr(coop)
    fewer = cooperative(hard=HardExamples(noise=0, fraction=0.5, scale=0.25, separate=True, separate_decoder=True))
    assert (
        "hard=HardExamples(noise=0, fraction=0.5, scale=0.25, separate=True, separate_decoder=True, every=1)"
        in repr(fewer)
    )
    assert "(saliency_schedule): Every(4)" in repr(cooperative(hard=HardExamples(saliency_every=4)))


# Refusals -------------------------------------------------------------------------------------------------------------


def test_train_mode_needs_labels() -> None:
    with pytest.raises(ValueError, match=r"needs `labels` in train mode; got None. .* call .eval\(\)"):
        cooperative()(batch()[0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_train_mode_needs_gradients(context: Callable[[], Any]) -> None:
    coop, (images, labels) = cooperative(), batch()
    with context(), pytest.raises(RuntimeError, match=r"gradients are disabled here. Leave torch.no_grad"):
        coop(images, labels)


def test_an_unknown_stage_is_refused() -> None:
    stage: Any = "hrad"
    with pytest.raises(ValueError, match="stage must be one of 'all', 'standard', 'first' or a HardStage; got 'hrad'"):
        cooperative()(*batch(), stage=stage)


def test_fewer_than_no_steps_of_refinement_are_refused() -> None:
    with pytest.raises(ValueError, match="refine must be a whole number of steps, 0 or more; got -1"):
        cooperative().predict(batch()[0], refine=-1)


def test_a_model_of_a_fixed_size_is_refused_at_once() -> None:
    class Fixed(SkipNet):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[2:] != (16, 20):
                raise ValueError("Wrong size.")
            return super().forward(images)

    with pytest.raises(ValueError, match=r"scale=0.5 needs .* size \(8, 8\); Fixed raised ValueError: Wrong"):
        cooperative(Fixed, codes="bottleneck", hard=HardExamples(scale=0.5))


def test_other_things_than_hard_examples_are_refused() -> None:
    with pytest.raises(TypeError, match=r"hard must be HardExamples\(...\); got 0.5"):
        cooperative(hard=0.5)


def test_unknown_norms_to_freeze_are_refused() -> None:
    with pytest.raises(ValueError, match=r"frozen_norms must name submodules, .* got \['model.encodr'\]"):
        cooperative(hard=HardExamples(frozen_norms=("model.encodr",)))


# Regions --------------------------------------------------------------------------------------------------------------


def regions_batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    images, labels = batch(dtype=dtype)
    whole = labels > 0
    return images, torch.stack([whole, whole & (labels > 1), images[:, 0] > 0.7], 1).long()


def of_regions(**options: Any) -> CooperativeModel:
    prior = ShapePrior(3, width=2, depth=2, regions=True).double()
    return cooperative(dtype=torch.float64, regions=True, shape_prior=prior, **options)


def binary_by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    return -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).mean()


def test_losses_of_regions_are_binary_cross_entropies_over_all_channels() -> None:
    coop, (images, labels) = of_regions(), regions_batch()
    coop.eval()
    with torch.no_grad():
        output = coop(images, labels)
    prior, target = coop.shape_prior, labels.double()
    assert prior is not None
    with torch.no_grad():
        refined, again = prior((output.logits / prior.temperature).sigmoid()), prior(target)
    torch.testing.assert_close(output.refined, refined)
    for name, logits in (("segmentation", output.logits), ("from_logits", refined), ("from_labels", again)):
        loss = output.losses[name if name == "segmentation" else f"shape_{name}"]
        torch.testing.assert_close(loss, binary_by_hand(logits, target))


@pytest.mark.parametrize("wrap", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("hard", [HardExamples(), SHORTCUTS], ids=["whole", "smaller"])
def test_steps_of_regions_fill_the_gradients_of_one_backward_pass(wrap: Wrap, hard: HardExamples) -> None:
    coop, (images, labels) = of_regions(hard=hard), regions_batch()
    other = copy.deepcopy(coop)
    torch.manual_seed(1)
    output = coop(images, labels, generator=seeded())
    output.loss.backward()
    torch.manual_seed(1)
    cooperative_backward(wrap(other), images, labels, generator=seeded())
    assert set(output.losses) == {*STANDARD, *HARD}
    assert_same_gradients(other, coop)


def test_regions_are_predicted_where_their_logit_is_positive() -> None:
    coop, (images, _) = of_regions(), regions_batch()
    coop.eval()
    logits = coop(images)
    assert torch.equal(coop.predict(images, refine=0), (logits > 0).long())
    assert torch.equal(coop.predict(images), (coop.refine(logits) > 0).long())
    assert torch.equal((coop.deployed()(images) > 0).long(), coop.predict(images))


def test_pixels_of_a_region_that_are_ignored_count_nowhere() -> None:
    coop, (images, labels) = of_regions(), regions_batch()
    coop.eval()
    whole = coop(images, labels).losses["segmentation"] * labels.numel()
    ignored = labels.clone()
    ignored[0, 1] = -100
    rest = coop(images, ignored)
    lost = binary_by_hand(rest.logits[0, 1], labels[0, 1].double()) * labels[0, 1].numel()
    found = rest.losses["segmentation"] * (labels.numel() - labels[0, 1].numel())
    torch.testing.assert_close(found, whole - lost)


def test_a_loss_of_the_users_own_gets_regions_as_they_are_in_floating_point() -> None:
    seen: list[Tensor] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return F.binary_cross_entropy_with_logits(logits, labels)

    coop, (images, labels) = of_regions(loss=loss), regions_batch()
    seen.clear()
    for given in (labels, labels.bool(), labels.float(), labels.to(torch.uint8)):
        coop.eval()(images, given)
    assert all(torch.equal(one, labels.double()) for one in seen)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, 16, 20), r"of regions needs labels \[B, 3, \*S\], 0 and 1 in a channel for each"),
        (torch.zeros(3, 2, 16, 20), r"got \(3, 2, 16, 20\)"),
        (torch.full((3, 3, 16, 20), 2), "needs labels in 0 … 1"),
    ],
)
def test_labels_that_are_no_regions_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_regions()(regions_batch()[0], labels)


def test_a_shape_prior_of_classes_is_refused_for_regions_and_the_other_way_round() -> None:
    with pytest.raises(ValueError, match=r"shape_prior must be of regions, .* Make it with regions=True"):
        cooperative(regions=True)
    with pytest.raises(ValueError, match=r"shape_prior must be of classes, .* Make it with regions=False"):
        cooperative(shape_prior=ShapePrior(3, width=2, depth=2, regions=True))


def test_the_heads_that_are_made_take_regions() -> None:
    coop = CooperativeModel(SkipNet(), num_classes=3, regions=True, example=batch()[0], shape_prior=True)
    assert coop.shape_prior is not None
    assert coop.shape_prior.regions
    explanation = coop.explain(batch()[0], regions_batch()[1])
    assert explanation.refined.shape == (3, 3, 16, 20)
