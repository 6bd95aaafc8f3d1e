"""What a pass starts from, and what has become of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentaug.tap.start import Start, put_left, see_what_is_known


class Averages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.passes, self.seen = 0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.5 * self.mean + x.detach().mean()
        self.passes += 1
        self.seen.append(self.passes)
        return x - self.mean


MOVING = ("0.mean", "0.passes", "0.seen")


def model() -> nn.Sequential:
    return nn.Sequential(Averages(), nn.Linear(2, 2))


CHANGES: dict[str, tuple[Callable[[Any, Tensor], object], str]] = {
    "inputs": (lambda net, x: x.add_(1), "inputs as they were"),
    "inputs by data": (lambda net, x: x.data.add_(1), "inputs as they were"),
    "inputs by numpy": (lambda net, x: x.numpy().__iadd__(1), "inputs as they were"),
    "mode": (lambda net, x: net.eval(), "'the model' was switched to eval mode"),
    "type": (lambda net, x: net.double(), "'1.weight' is of dtype torch.float64 now"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_refused(change: str) -> None:
    net, x = model(), torch.ones(3, 2)
    start = Start(net, ((x,), {}))
    start.see_that_it_is_as_it_was()
    CHANGES[change][0](net, x)
    with pytest.raises(RuntimeError, match=CHANGES[change][1]):
        start.see_that_it_is_as_it_was()


def test_what_moves_is_lent_as_it_was() -> None:
    net, x = model(), torch.ones(3, 2)
    start = Start(net, ((x,), {}), moving=MOVING)
    first = net(x)
    assert start.unplanned() == set()
    net(x)
    now = net[0].mean, net[0].passes, list(net[0].seen)
    with start.lent(fixed=True, state=True, detach=False):
        assert torch.equal(net(x), first)
        assert net[0].seen == [0, 1]
    assert (net[0].mean, net[0].passes, net[0].seen) == now


def test_what_was_not_known_to_move_is_named() -> None:
    net, x = model(), torch.ones(3, 2)
    start = Start(net, ((x,), {}))
    net(x)
    assert start.unplanned() == {*MOVING}


def test_what_a_call_has_set_is_set_without_it() -> None:
    net, x = model(), torch.ones(3, 2)
    start = Start(net, ((x,), {}), moving=MOVING)
    net[0](x)
    left, after = start.left_by("0"), (net[0].mean, net[0].passes, list(net[0].seen))
    net[0](x)
    put_left(left, detach=False)
    assert (net[0].mean, net[0].passes, net[0].seen) == after
    assert start.left_by("1") == []
    assert len(start.left_by("")) == 3


def test_values_that_are_gone_are_refused_by_name() -> None:
    net = model()
    net.grid = torch.zeros(100, 100)
    start = Start(net, ((torch.ones(3, 2),), {}))
    net.grid.add_(1)
    with (
        pytest.raises(RuntimeError, match="'grid' was changed in place"),
        start.lent(fixed=True, state=True, detach=False),
    ):
        pass


def test_checkpointing_is_noticed() -> None:
    start, told = Start(model(), ((), {}), saving={("1", 0): "plain"}), []

    def function(x: Tensor) -> Tensor:
        told.append(start.saves_otherwise(("1", 0)))
        return x * 2

    x = torch.ones(1, requires_grad=True)
    function(x)
    checkpoint(function, x, use_reentrant=False)
    with torch.no_grad():
        function(x)
    assert told == [False, True, False]


def test_what_an_accelerator_tells_late_is_refused_late() -> None:
    waiting: list[bool | None] = [None]
    verdicts: list[Callable[[], bool | None]] = [lambda: waiting[0], lambda: False]
    see_what_is_known(verdicts)
    assert len(verdicts) == 1
    waiting[0] = True
    with pytest.raises(RuntimeError, match="in an earlier replay they had changed on their device"):
        see_what_is_known(verdicts)
    assert verdicts == []
