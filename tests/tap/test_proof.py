"""What a proof of replays finds, and what it calls the same."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.tap.latent_tap import LatentTap
from latentaug.tap.plan import make_plan
from latentaug.tap.proof import captured, prove, relative_change, same
from latentaug.tracing.isolation import sandbox
from latentaug.tracing.location import Spot
from tests.models.case import Case
from tests.models.hostile.branches import LateBranch
from tests.models.hostile.skips import CASES
from tests.models.parts import Base


def proved(case: Case, model: nn.Module, **changes: Any) -> tuple[Any, str | None]:
    """Prove the plan of a model once more, with changes to it."""
    images = case.images()
    plan = make_plan(model, (Spot(case.layer, case.path),), -1, (images,), {})
    with sandbox(model, torch.device("cpu")):
        return prove(*captured(model, dataclasses.replace(plan, fast=True, **changes), (images,), {}), ((images,), {}))


def test_exact_replays_are_proved() -> None:
    case = CASES["SkipConnection"]
    plan, reason = proved(case, case.model(True))
    assert reason is None
    assert plan.kept == {("stem", 0)}


@pytest.mark.parametrize("name", ["SkipsOnSelf", "SkipsOnTheFirstModule", "HookedGrandchildren"])
def test_state_between_modules_is_found(name: str) -> None:
    case = CASES[name]
    assert proved(case, case.model(False))[1] == "it keeps state between modules that their outputs do not show"


class WrongWay(torch.autograd.Function):
    """Returns what it is given, and passes its gradient on only if it is told to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: Callable[[], bool]) -> Tensor:
        ctx.passes = passes
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.passes(), None


def test_gradients_that_outputs_do_not_show_are_found() -> None:
    counted = [0]

    class Counting(nn.Conv2d):
        """The backward pass depends on how often it was called, as is noted elsewhere."""

        def forward(self, x: Tensor) -> Tensor:
            counted[0] += 1
            calls = counted[0]
            return WrongWay.apply(super().forward(x), lambda: calls == counted[0])  # type: ignore[no-any-return, no-untyped-call]

    class Counts(Base):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Counting(3, 4, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.stem(x)
            return self.head(self.up(self.code(a)) + a)

    case = Case(Counts, "code")
    reason = proved(case, case.model(False))[1]
    assert reason == "gradients reach it in a way that outputs of modules do not show"


def test_what_follows_the_code_and_turns_out_to_depend_on_it_is_run_again() -> None:
    case = Case(LateBranch, "code")
    model = case.model(False)
    late = ("up", 0)  # which depends on the code, and is seen to when it comes
    _, reason = proved(case, model, kept=frozenset({("stem", 0), late}), late=frozenset({late}))
    assert reason is None


def test_a_pass_that_is_not_repeated_is_refused() -> None:
    numbers = itertools.count()

    class Draws(Base):
        def forward(self, x: Tensor) -> Tensor:
            a = self.stem(x) + next(numbers)
            return self.head(self.up(self.code(a)) + a)

    case = Case(Draws, "code")
    with pytest.raises(RuntimeError, match="cannot replay Draws: run again with the same inputs and random state"):
        proved(case, case.model(False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
def test_numbers_are_the_same_up_to_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(50).to(dtype)
    rounding = 1e-3 if dtype is torch.bfloat16 else 1e-7
    assert same([x, None], [x.clone(), None])
    assert same(x, x * (1 + rounding))
    assert not same(x, x * 1.1)
    assert not same(x, x[None])
    assert not same([x, None], [None, x])
    assert not same([x], [x, x])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_must_be_in_the_same_places(value: float) -> None:
    x = torch.tensor([1.0, value, 2.0])
    assert same(x, x.clone())
    assert same(x[:1].long(), x[:1].long())
    assert not same(x, torch.tensor([1.0, 2.0, value]))
    assert not same(x, torch.tensor([1.0, 0.0, 2.0]))
    assert not same(torch.tensor([1.0, 0.0, 2.0]), x)
    assert not same(x, torch.tensor([1.0 + 1e-7, value, 2.0]))


def test_the_relative_change_is_that_of_all_floats() -> None:
    a, b = (
        {"x": torch.tensor([3.0, 0.0]), "n": torch.tensor([1])},
        {"x": torch.tensor([0.0, 4.0]), "n": torch.tensor([2])},
    )
    assert relative_change(a, b) == pytest.approx(5 / 4)
    assert relative_change(b, b) == 0


class Leaves(nn.Module):
    """Leaves its input on itself, and returns a tensor of its own."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        return x * 2


class Fetches(nn.Module):
    """Takes away what another module has left."""

    def __init__(self, source: Leaves) -> None:
        super().__init__()
        self.source = [source]

    def forward(self, x: Tensor) -> Tensor:
        kept, self.source[0].kept = self.source[0].kept, None
        return x + 0.5 * kept


class LateFetch(Base):
    """The code is followed by a call that it has no part in, and that misses what a skipped call would have left."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Leaves()
        self.fetch = Fetches(self.encoder)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        self.encoder(a)
        return self.head(self.up(self.code(a)) + self.fetch(a))


def test_what_a_late_call_misses_in_a_detached_replay_is_found() -> None:
    torch.manual_seed(0)
    model, images = LateFetch(), torch.randn(2, 3, 8, 8)
    for layer in ("encoder", "code"):
        with LatentTap(model, layer) as tap:
            output = model(images)
            for detach in (False, True):
                for full in (False, True):
                    assert torch.equal(tap.replay(None, full=full, detach=detach), output)


class InPlaceBehind(Base):
    """A layer that returns its very input in eval mode, which the following one changes in place."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.skip, self.drop, self.act = skip, nn.Dropout(0.5), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = self.act(self.drop(a))
        return self.head(a + b if self.skip else b)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_code_that_is_changed_in_place_under_another_name_is_refused(skip: bool, training: bool, grad: bool) -> None:
    torch.manual_seed(0)
    model, images = InPlaceBehind(skip).train(training), torch.randn(2, 3, 8, 8)
    with torch.set_grad_enabled(grad):
        torch.manual_seed(1)
        plain = model(images)
        torch.manual_seed(1)
        if skip and not training:
            with LatentTap(model, "drop"), pytest.raises(RuntimeError, match=r"'drop' of .* returns the memory"):
                model(images)
        else:
            with LatentTap(model, "drop") as tap:
                assert torch.equal(model(images), plain)
                assert torch.equal(tap.replay(None), plain)
