"""Saliency by an object that hooks on a layer."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from latentaug import LatentTap, RandomChannelMask
from latentaug.discovery.bottleneck import find_bottleneck
from latentaug.layout import CHANNELS_FIRST
from latentaug.tap.calculator import SaliencyCalculator
from latentaug.tracing.location import Location
from tests.support.traces import traces


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


def test_two_that_find_the_bottleneck_at_the_first_call() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2))
    images = torch.rand(1, 1, 8, 8)
    first, second = SaliencyCalculator(model), SaliencyCalculator(model)
    loss = model(images).square().mean()
    saliency, same = first(loss), second(loss)
    assert torch.equal(saliency, same)
    expected: list[Tensor] = []
    layer = model.get_submodule(find_bottleneck(model, images).name)
    handle = layer.register_forward_hook(lambda _, __, output: (expected.append(output), output.clone())[1])
    plain = model(images).square().mean()
    handle.remove()
    torch.testing.assert_close(saliency, torch.autograd.grad(plain, expected[0])[0])


@pytest.mark.filterwarnings("ignore:.*attribute of a Tensor that is not a leaf.*", "ignore:.*deprecated.*")
@pytest.mark.parametrize("when", ["before", "after"])
def test_on_a_model_that_is_compiled(when: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2, 2))
    images = torch.rand(2, 1, 16, 16)
    code = model[1](model[0](images)).detach().requires_grad_()
    (expected,) = torch.autograd.grad(model[2](code).square().mean(), code)
    compiled = torch.compile(model, backend="aot_eager")
    if when == "after":
        compiled(images)
    with SaliencyCalculator(compiled, "1") as calculator:
        torch.testing.assert_close(calculator(compiled(images).square().mean()), expected)
    torch.testing.assert_close(compiled(images), model(images))


class Skips(nn.Module):
    """Keeps what it gives to a layer that returns it, which the next changes in place."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.passed, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Identity(), nn.ReLU(inplace=inplace)

    def forward(self, images: Tensor) -> Tensor:
        skip = self.first(images)
        return skip + self.last(self.passed(skip))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_that_returns_what_it_was_given_leaves_the_pass_as_it_is(inplace: bool) -> None:
    model, images = Skips(inplace), torch.randn(2, 1, 8, 8)
    expected = model(images)
    with SaliencyCalculator(model, "passed") as calculator:
        output = model(images)
        assert torch.equal(output, expected)
        if inplace:
            with pytest.raises(RuntimeError, match="cannot keep what 'passed' returned"):
                calculator(output.sum())
        else:
            assert torch.equal(calculator(output.sum()), (calculator.code > 0).float())  # without the skip's own part


def test_passes_of_the_librarys_own_leave_the_code_that_of_the_users(images: Tensor) -> None:
    model = Net()
    with SaliencyCalculator(model, "encoder[1]") as calculator:
        loss, code = model(images).mean(), calculator.code
        find_bottleneck(model, images)
        assert calculator.code is code
        with LatentTap(model, "encoder[1]") as tap:
            loss, code = model(images).mean(), calculator.code
            tap.replay(RandomChannelMask())
        assert calculator.code is code
        assert calculator(loss).shape == code.shape
