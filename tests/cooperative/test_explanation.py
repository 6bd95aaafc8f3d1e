"""Explanations of hard examples, against plain hooks and automatic differentiation."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.augment.base import LatentTransform
from latentaug.augment.drop import DropBlock
from latentaug.augment.masks import RandomChannelMask
from latentaug.augment.style import MixStyle

# Eval mode ------------------------------------------------------------------------------------------------------------
from latentaug.cooperative.explanation import Explanation
from latentaug.cooperative.logits import read_logits
from latentaug.cooperative.objective import reconstruction_loss, segmentation_loss
from tests.support.codes import seeded
from tests.support.cooperation import CASES, batch, case, cooperative, scaled_at


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


def test_an_explanation_is_shown_by_what_it_has_and_not_by_its_numbers() -> None:
    shown = repr(Explanation(*[torch.rand(5, 2, 4, 4)] * 8))
    assert shown == f"Explanation of 5 hard examples: {', '.join(Explanation._fields)}"


@pytest.mark.parametrize("transform", [DropBlock(0.5, 1), MixStyle(p=1.0)], ids=["DropBlock", "MixStyle"])
def test_what_acts_in_train_mode_only_is_shown_too_and_keeps_its_mode(transform: LatentTransform) -> None:
    coop = cooperative(augment=transform)
    images, labels = batch()
    for mode in (True, False):
        coop.train(mode)
        shown = coop.explain(images, labels, generator=seeded())
        assert not torch.equal(shown.hard_segmentation, shown.logits)
        assert transform.training is mode
