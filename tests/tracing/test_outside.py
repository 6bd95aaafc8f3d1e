"""Generators that a model's code reads from elsewhere are known, and replays draw from them what the pass drew."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentaug import LatentTap, find_bottleneck
from latentaug.tracing.outside import generators_outside
from tests.models.unet import unet
from tests.support.random_streams import seed_all

NUMPY, TORCH, SYSTEM = np.random.default_rng(0), torch.Generator(), random.SystemRandom()
HOLDER = SimpleNamespace(rng=random.Random(0))


def drops() -> bool:
    return bool(NUMPY.random() < 0.3)


def seed() -> int:
    return SYSTEM.getrandbits(8)


class Net(nn.Module):
    """Leaves a layer after the code out, now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.ReLU())
        self.layer, self.decoder = nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 2, 4, 4)

    def leaves_out(self) -> bool:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        code = self.encoder(images)
        decoded: Tensor = self.decoder(code if self.leaves_out() else code + self.layer(code))
        return decoded


class ByGlobal(Net):
    def leaves_out(self) -> bool:
        return bool(torch.rand((), generator=TORCH) < 0.3)


class ByFunction(Net):
    def leaves_out(self) -> bool:
        return drops()


class ByObject(Net):
    def leaves_out(self) -> bool:
        return bool(HOLDER.rng.random() < 0.3)


def by_closure() -> Net:
    own = np.random.RandomState(0)

    class ByClosure(Net):
        def leaves_out(self) -> bool:
            return bool(own.rand() < 0.3)

    return ByClosure()


MODELS: dict[str, Callable[[], Net]] = {
    "global": ByGlobal,
    "function": ByFunction,
    "object": ByObject,
    "closure": by_closure,
}


@pytest.mark.parametrize("name", MODELS)
def test_replays_draw_what_the_pass_drew_however_seldom_it_shows(name: str) -> None:
    torch.manual_seed(0)
    model, images = MODELS[name]().train(), torch.rand(2, 1, 16, 16)
    assert len(generators_outside(model)) == 1
    seen = []
    for _ in range(20):
        with LatentTap(model, "encoder") as tap:
            output = model(images)
            assert torch.equal(tap.replay(None), output)
        seen.append(output.detach())
    assert len({float(output.sum()) for output in seen}) == 2  # the layer is left out in some


def test_what_a_name_stands_for_is_looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before, other = generators_outside(ByGlobal()), torch.Generator()
    monkeypatch.setitem(globals(), "TORCH", other)
    assert before != [other]
    assert generators_outside(ByGlobal()) == [other]


class Uses(Net):
    """Draws from the system, which has no state, and has a method that no pass calls."""

    def leaves_out(self) -> bool:
        return seed() < 0

    def other(self) -> bool:
        return drops()


@pytest.mark.parametrize("model", [nn.Dropout(), nn.Conv2d(1, 1, 1), Uses()], ids=["dropout", "conv", "system"])
def test_others_have_none(model: nn.Module) -> None:
    assert generators_outside(model) == []


def test_a_model_that_draws_from_the_system_is_followed() -> None:
    model, images = Uses(), torch.rand(2, 1, 16, 16)
    model.source = SYSTEM
    with LatentTap(model, "encoder") as tap:
        output = model(images)
        assert torch.equal(tap.replay(None), output)


# Hooks ----------------------------------------------------------------------------------------------------------------


def noise(module: nn.Module, args: tuple[Tensor, ...], own: torch.Generator | None = None) -> tuple[Tensor]:
    return (args[0] * torch.rand(args[0].shape, generator=STREAM if own is None else own),)


class Noise:
    def __init__(self, own: torch.Generator) -> None:
        self.own = own

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return noise(module, args, self.own)

    method = __call__


STREAM = torch.Generator()
HOOKS: dict[str, Callable[[torch.Generator], Callable[..., tuple[Tensor]]]] = {
    "a closure": lambda own: lambda module, args: noise(module, args, own),
    "a partial": lambda own: partial(noise, own=own),
    "an object": Noise,
    "a method": lambda own: Noise(own).method,
    "a global": lambda own: noise,
}


@pytest.mark.parametrize("name", HOOKS)
def test_streams_of_a_hook_are_where_they_would_be_without_us(name: str) -> None:
    images, own = torch.rand(2, 3, 16, 16), torch.Generator().manual_seed(0)
    STREAM.manual_seed(0)
    model = unet().float()
    model.register_forward_pre_hook(HOOKS[name](own))
    before = own.get_state(), STREAM.get_state()
    find_bottleneck(model, images)
    assert all(torch.equal(*pair) for pair in zip(before, (own.get_state(), STREAM.get_state()), strict=True))
    seed_all(1)
    expected = model(images)
    after = own.get_state(), STREAM.get_state()
    own.set_state(before[0])
    STREAM.set_state(before[1])
    seed_all(1)
    with LatentTap(model) as tap:
        assert torch.equal(model(images), expected)
        assert torch.equal(tap.replay(tap.code), expected)
    assert all(torch.equal(*pair) for pair in zip(after, (own.get_state(), STREAM.get_state()), strict=True))
