"""Whatever raises inside a tap, wherever: afterwards nothing of it is left, and the model works as before."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug.discovery.bottleneck import find_bottleneck
from latentaug.saliency import latent_saliency
from latentaug.tap.calculator import SaliencyCalculator
from latentaug.tap.describe import describe
from latentaug.tap.latent_tap import LatentTap
from tests.models.parts import conv
from tests.support.compare import same
from tests.support.random_streams import random_state, seed_all
from tests.support.traces import traces


class Fault(Exception):
    """Raised where a test wants it."""


class Fragile(nn.Module):
    """A U-Net in mixed modes, with buffers of all kinds, that raises in the module and on the call it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.code = nn.utils.spectral_norm(conv(3, 4)), nn.BatchNorm2d(4), conv(4, 6, 2)
        self.up, self.drop = nn.ConvTranspose2d(6, 4, 2, 2), nn.Dropout(0.3)
        self.instance = nn.InstanceNorm2d(4, track_running_stats=True)
        self.head = conv(4, 2)
        self.train()
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.norm(self.stem(x)))
        z = self.code(F.dropout(a, 0.2))
        return self.head(self.instance(self.drop(self.up(z))) + a)


def fragile() -> Fragile:
    torch.manual_seed(2)
    model = Fragile()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    return model


def state(model: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.state_dict().items()} | {
        f"{name}.grad": weight.grad.clone() for name, weight in model.named_parameters()
    }


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def failing(*_: Any) -> Any:
    raise Fault("on purpose")


def from_call(number: int) -> Callable[..., None]:
    """Return a hook that raises on its call of that number and on every later one."""
    calls = count()

    def hook(*_: Any) -> None:
        if (call := next(calls)) >= number:
            raise Fault(f"on call {call}")

    return hook


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("where", ["", "stem", "code", "up"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_fault_in_any_pass_leaves_nothing(kind: str, where: str, number: int) -> None:
    """The first passes are the tap's own dry runs, the later ones the user's."""
    model = fragile()
    handle = getattr(model.get_submodule(where), kind)(from_call(number))
    before, values = traces(model, buffers=False), state(model)
    seed_all(0)
    stream = random_state()
    with LatentTap(model, "code"), pytest.raises(Fault, match=r"^on call \d$"):
        model(IMAGES)
    assert traces(model, buffers=False) == before
    if number < 2:  # a dry run: not even the statistics have moved
        assert same(state(model), values)
        assert random_state() == stream
    handle.remove()
    assert_works(model)


def assert_works(model: nn.Module) -> None:
    with LatentTap(model, "code") as tap:
        logits = model(IMAGES)
        assert torch.equal(tap.replay(tap.code), logits)
        assert torch.equal(tap.replay(tap.code, full=True), logits)
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("where", ["", "stem", "code", "up", "head"])
def test_a_fault_in_a_replay_leaves_nothing_and_the_next_one_works(where: str, full: bool) -> None:
    model = fragile()
    with LatentTap(model, "code") as tap:
        logits = model(IMAGES)
        before, values, stream = traces(model), state(model), random_state()
        handle = model.get_submodule(where).register_forward_pre_hook(failing)
        with pytest.raises(Fault, match="on purpose"):
            tap.replay(tap.code, full=full)
        handle.remove()
        assert traces(model) == before
        assert same(state(model), values)
        assert random_state() == stream
        assert torch.is_grad_enabled()
        assert torch.equal(tap.replay(tap.code, full=full), logits)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_fault_in_a_callable_code_leaves_nothing() -> None:
    model = fragile()
    with LatentTap(model, "code") as tap:
        logits = model(IMAGES)
        before, stream = traces(model), random_state()
        for full in (False, True):
            for detach in (False, True):
                with pytest.raises(Fault, match="on purpose"):
                    tap.replay(failing, full=full, detach=detach)
        assert traces(model) == before
        assert random_state() == stream
        assert torch.equal(tap.replay(tap.code), logits)


def test_a_fault_in_the_loss_leaves_nothing() -> None:
    model = fragile()
    before = traces(model, buffers=False)
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    with LatentTap(model, "code") as tap:
        logits = model(IMAGES)
        logits.register_hook(failing)
        with pytest.raises(Fault, match="on purpose"):
            latent_saliency(logits.sum(), tap.code)
    assert traces(model, buffers=False) == before
    assert same({name: weight.grad for name, weight in model.named_parameters()}, gradients)
    assert_works(model)


def test_a_fault_in_the_users_block_leaves_nothing() -> None:
    model = fragile()
    before = traces(model, buffers=False)

    def block() -> None:
        with LatentTap(model, "code"), LatentTap(model, "up"):
            model(IMAGES)
            raise Fault("in the block")

    with pytest.raises(Fault, match="in the block"):
        block()
    assert traces(model, buffers=False) == before
    assert_works(model)


def test_a_fault_while_the_weights_are_constants_gives_them_back() -> None:
    model = fragile()
    with LatentTap(model, "code") as tap:
        model(IMAGES)
        handle = model.stem.register_forward_hook(failing)
        with pytest.raises(Fault, match="on purpose"):
            tap.replay(tap.code.detach(), full=True, detach=True)
        handle.remove()
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("look", [find_bottleneck, describe])
def test_a_fault_in_a_search_leaves_nothing(look: Callable[..., Any]) -> None:
    model = fragile()
    before, values, stream = traces(model), state(model), random_state()
    handle = model.head.register_forward_pre_hook(failing)
    with pytest.raises(Fault, match="on purpose"):
        look(model, IMAGES)
    handle.remove()
    assert traces(model) == before
    assert same(state(model), values)
    assert random_state() == stream
    look(model, IMAGES)
    assert traces(model) == before
    assert same(state(model), values)
    assert random_state() == stream


def test_a_fault_under_a_saliency_calculator_leaves_nothing_after_its_block() -> None:
    model = fragile()
    before = traces(model, buffers=False)

    def block() -> None:
        with SaliencyCalculator(model, "code"):
            model(IMAGES)
            raise Fault("in the block")

    with pytest.raises(Fault, match="in the block"):
        block()
    assert traces(model, buffers=False) == before
