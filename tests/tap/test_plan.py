"""What replays may skip: all that the code has no part in, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentaug.tap.latent_tap import LatentTap
from tests.models.case import Case
from tests.models.hostile.branches import DEPENDENT, SKIPPED, Base, LateBranch
from tests.models.parts import conv
from tests.support.compare import close, gradients, same
from tests.support.counting import CountOperations
from tests.support.oracle import halved, oracle
from tests.support.random_streams import seed_all


def mirrored(code: Tensor) -> Tensor:
    return code.flip(-1)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("change", [halved, mirrored])
@pytest.mark.parametrize("build", SKIPPED + DEPENDENT)
def test_replays_equal_the_oracle(build: type[Base], change: Callable[[Tensor], Tensor], train: bool) -> None:
    case = Case(build, "code")
    reference, expected, _ = oracle(case, train, change)
    model = case.model(train)
    with LatentTap(model, "code") as tap:
        model(case.images(1))
        seed_all(0)
        model(case.images())
        for _ in range(2):
            replayed = tap.replay(change)
            assert same(replayed, expected)
        assert close(gradients(model, replayed), gradients(reference, expected))


@pytest.mark.parametrize(("build", "computed"), [(LateBranch, 2), *((build, 3) for build in DEPENDENT)])
def test_only_what_depends_on_the_code_is_computed(build: type[Base], computed: int) -> None:
    model, images = build(), torch.randn(2, 3, 16, 16)
    with LatentTap(model, "code") as tap:
        model(images)
        with CountOperations() as operations:
            tap.replay(tap.code)
    assert operations.count == computed


def test_a_detached_replay_gives_gradients_to_all_that_follows_the_code() -> None:
    model, images = LateBranch(), torch.randn(2, 3, 16, 16)
    with LatentTap(model, "code") as tap:
        model(images)
        tap.replay(tap.code.detach(), detach=True).square().mean().backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == {f"{name}.{kind}" for name in ("up", "branch", "head") for kind in ("weight", "bias")}


def test_with_two_codes_what_depends_on_either_is_computed() -> None:
    class TwoStreams(Base):
        def __init__(self) -> None:
            super().__init__()
            self.second = conv(4, 6, 2)

        def forward(self, x: Tensor) -> Tensor:
            a = self.stem(x)
            up = self.up(self.code(a))
            return self.head(up + self.branch(a) + F.interpolate(self.second(a), scale_factor=2)[:, :4])

    torch.manual_seed(0)
    model, images = TwoStreams(), torch.randn(2, 3, 16, 16)
    with LatentTap(model, ["code", "second"]) as tap:
        model(images)
        new = [code * 0.5 for code in tap.codes]
        with CountOperations() as operations:
            replayed = tap.replay(new)
        a = model.stem(images)
        expected = model.head(model.up(new[0]) + model.branch(a) + F.interpolate(new[1], scale_factor=2)[:, :4])
    assert torch.equal(replayed, expected)
    assert operations.count == 2
