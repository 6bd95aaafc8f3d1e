"""Losses backpropagated by whatever a loop calls for it, against one plain `loss.backward()`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.cooperative.backpropagation import Backpropagation
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward, standard_backward
from tests.models.segmenters import SkipNet
from tests.support.codes import seeded
from tests.support.cooperation import WAYS, Wrap, batch, gradients_of, small_ftn

in_both_ways = pytest.mark.parametrize("wrap", WAYS.values(), ids=WAYS)


class Dividing:
    """As `accelerate.Accelerator` does: divides each loss by the batches that it is told to accumulate, then scales."""

    def __init__(self, gradient_accumulation_steps: int = 1, loss_scale: float = 1.0) -> None:
        self.steps, self.loss_scale = gradient_accumulation_steps, loss_scale
        self.losses: list[Tensor] = []

    def backward(self, loss: Tensor, **options: Any) -> None:
        assert loss.ndim == 0
        self.losses.append(loss.detach())
        (self.loss_scale * (loss / self.steps)).backward(**options)


NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "mix": {"reconstruction": True, "hard": HardExamples(mix=0.5)},
    "reconstruction": {"reconstruction": True},
    "shape prior": {"shape_prior": True},
    "all, learned from": {
        "reconstruction": True,
        "shape_prior": True,
        "hard": HardExamples(separate=False, separate_decoder=False, noise=0.05),
        "weights": {"hard_code_segmentation": 1},
    },
    "FTN": {"build": small_ftn},
}
BACKWARDS: dict[str, tuple[Callable[[], Any], float]] = {
    "scales": (lambda: lambda loss: (1024 * loss).backward(), 1024),
    "divides": (lambda: Dividing(4).backward, 1 / 4),
    "divides and scales": (lambda: Dividing(4, 512).backward, 128),
}


def network(name: str) -> tuple[CooperativeModel, Tensor, Tensor]:
    options = dict(NETWORKS[name])
    torch.manual_seed(0)
    model = options.pop("build", lambda: SkipNet(num_classes=3, dropout=0.1))().double()
    images, labels = batch(dtype=torch.float64)
    return CooperativeModel(model, num_classes=3, example=images, **options), images, labels


def by_plain_backward(coop: CooperativeModel, images: Tensor, labels: Tensor) -> CooperativeOutput:
    torch.manual_seed(1)
    output: CooperativeOutput = coop(images, labels, generator=seeded())
    output.loss.backward()
    return output


def assert_gradients(found: nn.Module, expected: nn.Module, factor: float) -> None:
    for (name, one), other in zip(gradients_of(found).items(), gradients_of(expected).values(), strict=True):
        if other is None:
            assert one is None, name
        else:
            torch.testing.assert_close(one, factor * other, rtol=1e-9, atol=1e-13 * factor, msg=f"{name}: differs")


# Steps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("make", "factor"), BACKWARDS.values(), ids=BACKWARDS)
@in_both_ways
def test_gradients_are_those_of_a_plain_backward_times_what_the_callable_multiplies(
    name: str, make: Callable[[], Any], factor: float, wrap: Wrap
) -> None:
    coop, images, labels = network(name)
    plain = copy.deepcopy(coop)
    expected = by_plain_backward(plain, images, labels)
    torch.manual_seed(1)
    output = cooperative_backward(wrap(coop), images, labels, generator=seeded(), backward=make())

    assert_gradients(coop, plain, factor)
    torch.testing.assert_close(output.losses, expected.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(output.hard_images, expected.hard_images, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(output.hard_segmentation, expected.hard_segmentation, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", NETWORKS)
@in_both_ways
def test_scale_multiplies_all_gradients_and_nothing_else(name: str, wrap: Wrap) -> None:
    coop, images, labels = network(name)
    plain = copy.deepcopy(coop)
    expected = by_plain_backward(plain, images, labels)
    torch.manual_seed(1)
    output = cooperative_backward(wrap(coop), images, labels, generator=seeded(), scale=0.2)
    assert_gradients(coop, plain, 0.2)
    torch.testing.assert_close(output.losses, expected.losses, rtol=1e-12, atol=0)


@in_both_ways
def test_scale_and_a_callable_both_count_and_in_the_standard_step_too(wrap: Wrap) -> None:
    coop, images, labels = network("FTN")
    plain = copy.deepcopy(coop)
    torch.manual_seed(1)
    plain(images, labels, generator=seeded(), stage="standard").loss.backward()
    torch.manual_seed(1)
    standard_backward(wrap(coop), images, labels, generator=seeded(), backward=Dividing(4).backward, scale=0.5)
    assert_gradients(coop, plain, 1 / 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_loss_is_in_one_call_on_a_scalar(name: str) -> None:
    coop, images, labels = network(name)
    accelerator = Dividing()
    output = cooperative_backward(coop, images, labels, generator=seeded(), backward=accelerator.backward)
    torch.testing.assert_close(torch.stack(accelerator.losses).sum(), output.loss, rtol=1e-12, atol=0)


@in_both_ways
def test_accumulated_gradients_are_the_mean_over_the_batches(wrap: Wrap) -> None:
    coop, images, labels = network("all, learned from")
    coop.hard = HardExamples(every=1, separate=False, separate_decoder=False)
    plain, by_hand = copy.deepcopy(coop), copy.deepcopy(coop)
    batches = [(images[i : i + 2], labels[i : i + 2]) for i in (0, 1)]
    torch.manual_seed(1)
    for one in batches:
        (plain(*one, generator=seeded()).loss / 2).backward()
    torch.manual_seed(1)
    for one in batches:
        cooperative_backward(wrap(coop), *one, generator=seeded(), backward=Dividing(2).backward)
    assert_gradients(coop, plain, 1.0)
    torch.manual_seed(1)
    for one in batches:
        cooperative_backward(wrap(by_hand), *one, generator=seeded(), scale=1 / 2)
    assert_gradients(by_hand, plain, 1.0)


def test_a_forward_put_in_the_place_of_the_models_is_called() -> None:
    """As `accelerator.prepare` does for mixed precision."""
    coop, images, labels = network("default")
    coop, images = coop.float(), images.float()
    own, entered = coop.forward, []

    def forward(*args: Any, **options: Any) -> Any:
        entered.append(True)
        with torch.autocast("cpu", torch.bfloat16):
            return own(*args, **options)

    coop.forward = forward  # type: ignore[method-assign]
    output = cooperative_backward(coop, images, labels, generator=seeded())
    assert entered
    assert output.logits.dtype == torch.bfloat16
    assert all(gradient is not None for gradient in gradients_of(coop).values())


@pytest.mark.integration
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_accelerate_accumulates_the_mean(name: str, precision: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # one a process, of the first precision
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    coop, images, labels = network(name)
    coop, images = coop.float(), images.float()
    plain = copy.deepcopy(coop)
    prepared = accelerator.prepare(coop)
    batches = [(images[i : i + 2], labels[i : i + 2]) for i in (0, 1)]
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    torch.manual_seed(1)
    for one in batches:
        with autocast:
            loss = plain(*one, generator=seeded()).loss / 2
        loss.backward()
    torch.manual_seed(1)
    for one in batches:
        with accelerator.accumulate(prepared):
            cooperative_backward(prepared, *one, generator=seeded(), backward=accelerator.backward)
    for (parameter, found), expected in zip(gradients_of(coop).items(), gradients_of(plain).values(), strict=True):
        assert (found is None) is (expected is None), parameter
        if found is not None and expected is not None:
            tolerance = 1e-4 if precision == "no" else 0.1
            assert (found - expected).norm() <= tolerance * expected.norm() + 1e-6, parameter


# Parts ----------------------------------------------------------------------------------------------------------------


def test_what_has_arrived_is_taken_further_as_it_is() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    code = weight.square()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    factor = Backpropagation(scaler=scaler)([weight.sum()], [(code, torch.tensor([10.0, 100.0]))])
    assert weight.grad is not None
    assert weight.grad.tolist() == [8 + 10 * 2, 8 + 100 * 4]
    assert factor == 8


def test_gradients_that_have_arrived_go_further_without_any_loss() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    Backpropagation(lambda loss: (3 * loss).backward())([], [(weight.square(), torch.ones(2))])
    assert weight.grad is not None
    assert weight.grad.tolist() == [2, 4]


def test_nothing_to_backpropagate_is_no_error() -> None:
    weight = torch.ones(2, requires_grad=True)
    assert Backpropagation()([], [(weight.square(), None)]) is None
    assert weight.grad is None


def test_a_callable_that_does_not_backpropagate_is_told_so() -> None:
    coop, images, labels = network("FTN")
    with pytest.raises(RuntimeError, match="backward must backpropagate the loss that it is called with, at once"):
        cooperative_backward(coop, images, labels, backward=lambda loss: None)


def test_a_scaler_and_a_callable_are_too_much() -> None:
    coop, images, labels = network("default")
    with pytest.raises(ValueError, match="takes `scaler` or `backward`; got both"):
        cooperative_backward(
            coop, images, labels, scaler=torch.amp.GradScaler("cpu"), backward=lambda loss: loss.backward()
        )
