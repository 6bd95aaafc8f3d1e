"""Generators that a model's code reads from elsewhere are known, and replays draw from them what the pass drew."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentaug import LatentTap
from latentaug.tracing.outside import generators_outside

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
