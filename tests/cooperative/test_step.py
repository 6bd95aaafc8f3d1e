"""The steps in parts: the gradients of one backward pass, under every wrapper and option, in little memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.objective import WEIGHTS
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.nets.functional import one_hot
from tests.support.codes import seeded
from tests.support.cooperation import (
    CASES,
    HARD,
    QUIET,
    STANDARD,
    WAYS,
    Wrap,
    assert_parts_fill_the_same_gradients,
    assert_same_gradients,
    batch,
    case,
    code_at,
    cooperative,
    gradients_of,
    small_ftn,
)
from tests.support.tiny_training import Wrapper

in_both_ways = pytest.mark.parametrize("wrap", WAYS.values(), ids=WAYS)

# The gradients of one backward pass -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@in_both_ways
def test_backpropagating_in_parts_fills_the_same_gradients(name: str, wrap: Wrap) -> None:
    coop, images, labels = case(name)
    other = copy.deepcopy(coop)
    torch.manual_seed(1)
    output = coop(images, labels, generator=seeded())
    output.loss.backward()
    torch.manual_seed(1)
    in_parts = cooperative_backward(wrap(other), images, labels, generator=seeded())

    assert set(output.losses) == {*STANDARD, *HARD} - ({"shape_from_logits"} if name == "weightless" else set())
    torch.testing.assert_close(in_parts.losses, output.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(in_parts.loss, output.loss, rtol=1e-12, atol=0)
    assert_same_gradients(other, coop)
    assert not any(tensor.requires_grad for tensor in (in_parts.loss, in_parts.logits, in_parts.refined))


@pytest.mark.parametrize("codes", ["bottleneck", ["down", "bottleneck"]])
@in_both_ways
def test_the_loss_on_hard_segmentations_is_backpropagated_in_parts_too(wrap: Wrap, codes: Any) -> None:
    coop = cooperative(dtype=torch.float64, weights={"hard_code_segmentation": 1}, codes=codes)
    assert_parts_fill_the_same_gradients(coop, wrap)


@pytest.mark.parametrize("residual", [1.0, (0.0, 1.0)])
@in_both_ways
def test_hard_images_with_residuals_are_backpropagated_in_parts_too(wrap: Wrap, residual: Any) -> None:
    coop = cooperative(dtype=torch.float64, hard=HardExamples(residual=residual, fraction=0.5))
    assert_parts_fill_the_same_gradients(coop, wrap)


def test_gradients_accumulate() -> None:
    coop, images, labels = case("unet", dropout=0)
    expected = {name: torch.zeros_like(p) for name, p in coop.named_parameters()}
    for seed in (0, 1):
        coop.zero_grad()
        cooperative_backward(coop, images, labels, generator=seeded(seed))
        for name, gradient in gradients_of(coop).items():
            expected[name] += gradient
    coop.zero_grad()
    for seed in (0, 1):
        cooperative_backward(coop, images, labels, generator=seeded(seed))
    torch.testing.assert_close(gradients_of(coop), expected, rtol=1e-10, atol=1e-14)


def test_what_weighs_nothing_is_not_backpropagated() -> None:
    coop = cooperative(weights={name: 0.0 for name in WEIGHTS if "shape" in name})
    output = cooperative_backward(coop, *batch())
    assert coop.shape_prior is not None
    assert all(parameter.grad is None for parameter in coop.shape_prior.parameters())
    assert all(parameter.grad is not None for parameter in coop.model.parameters())
    assert not [name for name in output.losses if "shape" in name]


def test_a_model_with_frozen_layers_trains() -> None:
    coop = cooperative()
    frozen = ("model.stem", "model.down", "model.bottleneck")
    for part in frozen:
        coop.get_submodule(part).requires_grad_(False)
    cooperative_backward(coop, *batch())
    for name, gradient in gradients_of(coop).items():
        assert (gradient is None) is name.startswith(frozen), name


# Statistics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unet", "ftn", "several layers", "3-D"])
def test_running_statistics_are_those_of_one_standard_forward(name: str) -> None:
    coop, images, labels = case(name, dropout=0)
    coop.hard = QUIET
    plain = copy.deepcopy(coop)
    cooperative_backward(coop, images, labels, generator=seeded())

    logits: list[Tensor] = []
    plain.model.register_forward_hook(lambda module, inputs, output: logits.append(output))
    plain.reconstruction(code_at(plain.model, plain.image_code.name, images), images.shape[2:])
    assert plain.shape_prior is not None
    plain.shape_prior(one_hot(labels, 3, dtype=images.dtype))
    plain.shape_prior.refine(*logits)
    torch.testing.assert_close(dict(coop.named_buffers()), dict(plain.named_buffers()), rtol=1e-10, atol=1e-14)


# Precision ------------------------------------------------------------------------------------------------------------


def test_a_gradient_scaler_scales_both_stages() -> None:
    coop, images, labels = case("ftn")
    plain, scaled = copy.deepcopy(coop), copy.deepcopy(coop)
    cooperative_backward(plain, images, labels, generator=seeded())
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    output = cooperative_backward(scaled, images, labels, scaler=scaler, generator=seeded())
    torch.testing.assert_close(output.loss, plain(images, labels, generator=seeded()).loss.detach())
    for name, gradient in gradients_of(plain).items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients_of(scaled)[name], 128 * gradient)


def test_a_gradient_scaler_scales_the_standard_step_and_a_wrapped_one() -> None:
    coop, images, labels = case("ftn")
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    for step in (standard_backward, cooperative_backward):
        plain, scaled = copy.deepcopy(coop), copy.deepcopy(coop)
        step(Wrapper(plain), images, labels, generator=seeded())
        step(Wrapper(scaled), images, labels, scaler=scaler, generator=seeded())
        for name, gradient in gradients_of(plain).items():
            assert gradient is not None, name
            torch.testing.assert_close(gradients_of(scaled)[name], 128 * gradient)


def test_autocast_reaches_every_parameter() -> None:
    coop, images, labels = case("unet", torch.float32, dropout=0)
    exact = copy.deepcopy(coop)
    exact_loss = cooperative_backward(exact, images, labels, generator=seeded()).losses["segmentation"]
    with torch.autocast("cpu", torch.bfloat16):
        output = cooperative_backward(coop, images, labels, generator=seeded())
    assert output.losses["segmentation"].item() == pytest.approx(exact_loss.item(), rel=0.1)
    assert output.hard_images is not None
    assert output.hard_images.dtype == torch.float32
    expected = gradients_of(exact)
    for name, gradient in gradients_of(coop).items():
        reference = expected[name]
        assert gradient is not None, name
        assert reference is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.any() == reference.any(), name


def test_a_model_that_enters_autocast_itself_is_trained() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Conv2d(1, 4, 2, 2), nn.ConvTranspose2d(4, 3, 2, 2)

        def forward(self, images: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.decoder(self.encoder(images))

    images, labels = batch()
    coop = CooperativeModel(Mixed(), num_classes=3, example=images, reconstruction=True, shape_prior=True)
    output = coop(images, labels, generator=seeded())
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert output.refined.dtype == torch.float32
    for name, gradient in gradients_of(coop).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


# The standard step ----------------------------------------------------------------------------------------------------


@in_both_ways
def test_the_standard_step_is_the_first_stage_without_hard_examples(wrap: Wrap) -> None:
    coop, images, labels = case("unet")
    other = copy.deepcopy(coop)
    torch.manual_seed(1)
    plain = standard_backward(wrap(other), images, labels, generator=seeded())
    torch.manual_seed(1)
    first = coop(images, labels, generator=seeded(), stage="first")
    first.loss.backward()

    assert plain.hard_images is None
    assert plain.hard_segmentation is None
    torch.testing.assert_close(plain.losses, first.losses, rtol=0, atol=0)
    assert_same_gradients(other, coop)


# Modes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [cooperative_backward, standard_backward])
def test_a_step_needs_train_mode(step: Callable[..., CooperativeOutput]) -> None:
    coop = cooperative().eval()
    with pytest.raises(RuntimeError, match=rf"{step.__name__} needs the model in train mode; call .train\(\)"):
        step(coop, *batch())
    assert all(parameter.grad is None for parameter in coop.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_after_the_first_makes_the_host_wait() -> None:
    coop = cooperative(small_ftn).cuda()
    images, labels = (tensor.cuda() for tensor in batch())
    cooperative_backward(coop, images, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            cooperative_backward(coop, images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
