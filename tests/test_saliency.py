"""Saliency: the signed gradient of a loss by a code, in a function and in an object that hooks on."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from latentaug.discovery import Location
from latentaug.layout import CHANNELS_FIRST
from latentaug.saliency import SaliencyCalculator, latent_saliency
from tests.hostile_models import traces


def test_saliency_is_the_signed_gradient() -> None:
    code = torch.tensor([[1.0, -2.0], [3.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[2.0, -1.0], [0.5, 4.0]])
    saliency = latent_saliency((code**2 * weight).sum(), code)
    assert torch.equal(saliency, 2 * code.detach() * weight)
    assert not saliency.requires_grad
    assert code.grad is None


def test_a_list_of_codes_gives_a_list() -> None:
    codes = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    loss = (codes[0].sum() * codes[1].sum()).square()
    found = latent_saliency(loss, codes)
    assert isinstance(found, list)
    assert [one.tolist() for one in found] == [[36.0] * 2, [24.0] * 3]


def test_the_graph_stays_for_the_backward_pass() -> None:
    weight = torch.ones(3, requires_grad=True)
    code = weight * 2
    loss = code.square().sum()
    latent_saliency(loss, code)
    latent_saliency(loss, code)
    loss.backward()
    assert torch.equal(weight.grad, torch.full((3,), 8.0))


def test_small_gradients_survive_float16() -> None:
    """Straight through float16, gradients of 3e-8 and 4e-8 would be the same number."""
    code = torch.ones(2, dtype=torch.float16, requires_grad=True)
    factors = torch.tensor([3e-8, 4e-8])
    saliency = latent_saliency((code.float() * factors).sum(), code)
    assert saliency.dtype == torch.float32
    assert torch.allclose(saliency, factors, rtol=1e-3, atol=0)
    (naive,) = torch.autograd.grad((code.float() * factors).sum(), code)
    assert naive[0] == naive[1]


def test_float16_beside_float32_codes() -> None:
    half, single = torch.ones(2, dtype=torch.float16, requires_grad=True), torch.ones(2, requires_grad=True)
    found = latent_saliency((half.float() * single * 3).sum(), [half, single])
    assert [one.dtype for one in found] == [torch.float32, torch.float32]
    assert all(torch.equal(one, torch.full((2,), 3.0)) for one in found)


def test_half_losses_are_scaled_in_float32() -> None:
    code = torch.ones(2, dtype=torch.float16, requires_grad=True)
    saliency = latent_saliency((code * 0.5).sum() + 100, code)  # 2^12 times this loss is no float16
    assert torch.equal(saliency, torch.full((2,), 0.5))


def freed() -> tuple[Tensor, Tensor]:
    code = torch.ones(2, requires_grad=True)
    loss = (code * code).sum()
    loss.backward()
    return loss, code


def in_place() -> tuple[Tensor, Tensor]:
    code = torch.ones(2, requires_grad=True)
    hidden = code.exp()
    loss = hidden.square().sum()
    hidden.mul_(2)
    return loss, code


CODE = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("loss", "code", "error", "match"),
    [
        (CODE * 2, CODE, ValueError, r"needs a scalar `loss`; got shape \(2,\). Pass loss.mean\(\)"),
        (torch.ones(()), CODE, RuntimeError, r"with a graph; got one that requires no gradient. .* torch.no_grad\(\)"),
        (CODE.sum(), torch.ones(2, requires_grad=True), RuntimeError, "The loss does not depend on it: pass tap.code"),
        (CODE.sum(), torch.ones(2), RuntimeError, "The loss does not depend on it: pass tap.code"),
        (*freed(), RuntimeError, r"freed by a backward pass: take the saliency before loss.backward\(\)"),
        (*in_place(), RuntimeError, "modified by an inplace operation"),
    ],
    ids=["vector", "no graph", "other code", "no grad", "freed", "in place"],
)
def test_what_cannot_be_differentiated_says_why(loss: Tensor, code: Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        latent_saliency(loss, code)


# The calculator ---------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    skip: Tensor
    code: Tensor


class Net(nn.Module):
    """Returns its features in a container; what follows changes the code in place."""

    def __init__(self, pack: Any = list) -> None:
        super().__init__()
        self.encoder = Encoder(pack)
        self.act = nn.ReLU(inplace=True)
        self.up = nn.ConvTranspose2d(4, 3, 2, 2)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.encoder(x)
        skip, code = out.values() if isinstance(out, dict) else out
        return self.head(self.up(self.act(code)) + skip)


class Encoder(nn.Module):
    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.stem, self.down, self.pack = nn.Conv2d(1, 3, 3, 1, 1), nn.Conv2d(3, 4, 3, 2, 1), pack

    def forward(self, x: Tensor) -> Any:
        skip = self.stem(x)
        return self.pack([skip, self.down(skip)])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))


def by_hand(model: Net, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return code and saliency of the same pass, written out."""
    skip = model.encoder.stem(images)
    code = model.encoder.down(skip)
    loss = model.head(model.up(code.relu()) + skip).square().mean()
    return code, torch.autograd.grad(loss, code)[0]


def as_dict(values: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip(("skip", "code"), values, strict=True))


@pytest.mark.parametrize(
    ("pack", "layer"),
    [
        (list, "encoder[1]"),
        (tuple, "encoder[-1]"),
        (as_dict, "encoder['code']"),
        (lambda values: Pair(*values), Location("encoder", (1,), CHANNELS_FIRST, (), ())),
        (list, "encoder.down"),
    ],
    ids=["list", "tuple", "dict", "namedtuple", "module"],
)
def test_the_calculator_equals_the_derivative_by_hand(images: Tensor, pack: Any, layer: Any) -> None:
    model = Net(pack)
    code, expected = by_hand(model, images)
    calculator = SaliencyCalculator(model, layer)
    for _ in range(2):
        logits = model(images)
        assert torch.equal(calculator.code, code)  # the activation behind it changed a copy
        assert torch.equal(calculator(logits.square().mean()), expected)
    assert torch.equal(logits, Net.forward(model, images))
    calculator.remove()


def test_no_layer_takes_the_bottleneck(images: Tensor) -> None:
    model = Net()
    skip = model.encoder.stem(images)
    code = model.encoder.down(skip).relu()  # of the encoder's size, and later
    (expected,) = torch.autograd.grad(model.head(model.up(code) + skip).square().mean(), code)
    with SaliencyCalculator(model) as calculator:
        for _ in range(2):
            saliency = calculator(model(images).square().mean())
            assert torch.equal(calculator.code, code)
            assert torch.equal(saliency, expected)


def test_a_module_and_a_wrapped_model_may_be_given(images: Tensor) -> None:
    model = Net()
    _, expected = by_hand(model, images)
    with SaliencyCalculator(nn.DataParallel(model), model.encoder.down) as calculator:
        assert torch.equal(calculator(model(images).square().mean()), expected)


def test_inputs_may_be_named_when_the_layer_is_to_be_found(images: Tensor) -> None:
    model = Net()
    with SaliencyCalculator(model) as calculator:
        model(x=images)
        assert calculator.code.shape == (2, 4, 4, 6)


def test_the_model_trains_as_ever(images: Tensor) -> None:
    model, plain = Net(), Net()
    plain.load_state_dict(model.state_dict())
    with SaliencyCalculator(model, "encoder[1]") as calculator:
        loss = model(images).square().mean()
        calculator(loss)
        loss.backward()
    plain(images).square().mean().backward()
    assert all(
        torch.equal(ours.grad, theirs.grad) for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True)
    )


def test_a_frozen_encoder_has_a_saliency_too(images: Tensor) -> None:
    model = Net()
    _, expected = by_hand(model, images)
    model.encoder.requires_grad_(False)
    with SaliencyCalculator(model, "encoder[1]") as calculator:
        assert torch.equal(calculator(model(images).square().mean()), expected)


@pytest.mark.parametrize("layer", ["encoder[1]", None])
def test_removing_leaves_nothing(images: Tensor, layer: str | None) -> None:
    model = Net()
    before = traces(model)
    calculator = SaliencyCalculator(model, layer)
    assert traces(model) != before
    model(images)
    calculator.remove()
    assert traces(model) == before
    calculator.remove()
    with pytest.raises(RuntimeError, match="needs a forward pass of the model first"):
        _ = calculator.code
    with SaliencyCalculator(model, layer):  # before any pass
        pass
    assert traces(model) == before


def test_before_a_pass_there_is_no_code() -> None:
    with pytest.raises(RuntimeError, match="needs a forward pass of the model first"):
        SaliencyCalculator(Net(), "encoder[1]")(torch.ones(()))


def test_unknown_and_ambiguous_layers_are_refused(images: Tensor) -> None:
    model = Net()
    with pytest.raises(ValueError, match=r"found no submodule 'encodr' in Net; closest: 'encoder'"):
        SaliencyCalculator(model, "encodr")
    with SaliencyCalculator(model, "encoder"), pytest.raises(ValueError, match=r"'encoder' is several"):
        model(images)


def test_copies_of_a_watched_model_report_to_nobody(images: Tensor) -> None:
    model = Net()
    for layer in ("encoder[1]", None):
        with SaliencyCalculator(model, layer) as calculator:
            copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            logits = model(images)
            code = calculator.code
            for other in copies:
                assert torch.equal(other(images * 2), model.forward(images * 2))
            model(images)
            assert torch.equal(calculator.code, code)
            assert torch.equal(model(images), logits)


def test_without_gradients_nothing_is_kept_to_derive_by(images: Tensor) -> None:
    model = Net()
    with SaliencyCalculator(model, "encoder[1]") as calculator, torch.no_grad():
        loss = model(images).mean()
        assert not calculator.code.requires_grad
        with pytest.raises(RuntimeError, match="requires no gradient"):
            calculator(loss)


def test_a_calculator_and_its_code_are_collectable(images: Tensor) -> None:
    model = Net()
    with SaliencyCalculator(model, "encoder[1]") as calculator:
        model(images)
        references = [weakref.ref(calculator), weakref.ref(calculator.code)]
    del calculator
    gc.collect()
    assert [reference() for reference in references] == [None, None]
