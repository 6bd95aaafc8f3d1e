"""The cooperative model: its modes, its predictions and explanations, and that it leaves the user's model alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.augment.masks import RandomChannelMask
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.logits import read_logits
from latentaug.cooperative.objective import reconstruction_loss, segmentation_loss
from latentaug.cooperative.step import cooperative_backward
from tests.models.segmenters import Returning, SkipNet
from tests.support.codes import seeded
from tests.support.cooperation import CASES, STANDARD, batch, case, cooperative, scaled_at, small_ftn
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


# Explanations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_step_of_the_making_of_hard_examples_is_what_hooks_see(name: str) -> None:
    coop, images, labels = case(name)
    coop.hard = dataclasses.replace(coop.hard, residual=0)
    before = copy.deepcopy(coop.state_dict())
    shown = coop.explain(images, labels, generator=seeded())
    assert coop.training
    assert all(parameter.grad is None for parameter in coop.parameters())
    torch.testing.assert_close(dict(coop.state_dict()), dict(before), rtol=0, atol=0)

    coop.eval()
    image_code, shape_code = coop.image_code, max(coop.shape_codes, key=lambda one: math.prod(one.stride))
    codes: dict[str, Tensor] = {}

    def keep(layer: str) -> Any:
        def hook(module: Any, inputs: Any, code: Tensor) -> None:
            codes[layer] = code

        return coop.model.get_submodule(layer).register_forward_hook(hook)

    handles = [keep(layer) for layer in {image_code.name, shape_code.name}]
    (logits,) = read_logits(coop.model(images), coop.num_classes, images.ndim - 2)
    for handle in handles:
        handle.remove()
    code = codes[image_code.name]
    reconstruction = reconstruction_loss(coop.reconstruction(code, images.shape[2:]), images)
    (image_saliency,) = torch.autograd.grad(reconstruction, code, retain_graph=True)
    (shape_saliency,) = torch.autograd.grad(segmentation_loss(logits, labels), codes[shape_code.name])
    same = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-14)
    same(shown.logits, logits.detach())
    same(shown.image_saliency, image_code.layout.to_channels_first(image_saliency))
    same(shown.shape_saliency, shape_code.layout.to_channels_first(shape_saliency))

    with torch.no_grad():
        assert shown.image_factor is not None
        factor = image_code.layout.from_channels_first(shown.image_factor, code)
        same(shown.hard_images, coop.reconstruction(factor * code, images.shape[2:]))
        if len(coop.shape_codes) == 1:
            assert shown.shape_factor is not None
            factor = shape_code.layout.from_channels_first(shown.shape_factor, codes[shape_code.name])
            replayed = scaled_at(coop.model, {shape_code.name: factor}, images)
            same(shown.hard_segmentation, replayed)
        same(shown.refined, coop.refine(shown.hard_segmentation))


def test_without_a_mask_the_hard_segmentation_is_the_prediction() -> None:
    coop = cooperative(augment=RandomChannelMask(0.0), dtype=torch.float64)
    shown = coop.explain(*batch(dtype=torch.float64))
    torch.testing.assert_close(shown.hard_segmentation, shown.logits, rtol=1e-12, atol=1e-12)
    assert shown.shape_factor is not None
    assert shown.shape_factor.eq(1).all()


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
