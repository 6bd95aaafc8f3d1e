"""What follows the code without depending on it is skipped too, and nothing else is."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentaug.tap.latent_tap import LatentTap
from tests.models.case import Case
from tests.models.parts import Base as Parts
from tests.models.parts import conv
from tests.support.compare import close, gradients, same
from tests.support.counting import CountOperations
from tests.support.oracle import halved, oracle
from tests.support.random_streams import seed_all


class Base(Parts):
    """An encoder of two convolutions, a branch that takes the skip connection once the code is there, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv(4, 4)


class LateBranch(Base):
    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        up = self.up(self.code(a))
        return self.head(up * self.branch(F.dropout(a, 0.3, self.training)))


class BranchOfTheCodeWithoutGraph(Base):
    """The branch takes the code, but no gradient flows back through it."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        up = self.up(self.code(a))
        return self.head(up * self.branch(up.detach()))


class BranchOfAnIndex(Base):
    """The branch takes where the code is largest, which has no derivative."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        z = self.code(a)
        order = z.mean((0, 2, 3)).argsort()[:4] % 4
        return self.head(self.up(z) * self.branch(a[:, order]))


class BranchOfAChangedMemory(Base):
    """The branch takes a tensor that existed before, and that the code was written into."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        kept = a.detach().clone()
        up = self.up(self.code(a))
        kept[:, 1:2] = up[:, :1].detach()
        return self.head(up * self.branch(kept))


class BranchByAChoice(Base):
    """Whether the branch takes the skip connection or its negative is for the code to say."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        z = self.code(a)
        with torch.no_grad():
            sign = 1 if float(z.mean()) > float(z.flip(-1)[..., 0].mean()) else -1
        return self.head(self.up(z) * self.branch(sign * a))


class BranchByACount(Base):
    """The branch sees as many columns as the code has positive sites."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        z = self.code(a)
        count = len((z.detach() > z.detach().mean()).nonzero()) % a.shape[-1]
        return self.head(self.up(z) * self.branch(a * (torch.arange(a.shape[-1]) < count)))


class Foreign(nn.Module):
    """Doubles what it is given, where no operation of torch sees it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach()
        result = torch.empty(x.shape, dtype=x.dtype)
        source, size = np.ascontiguousarray(x.numpy()), x.numel() * x.element_size()
        ctypes.memmove(result.data_ptr(), source.ctypes.data, size)
        return result * 2


class BranchOfForeignCode(Base):
    def __init__(self) -> None:
        super().__init__()
        self.foreign = Foreign()

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(self.code(self.stem(x)))
        return self.head(up * self.branch(self.foreign(up)))


class BranchOfHiddenState(Base):
    """The branch is given the skip connection, and finds the code on the module."""

    class Branch(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.gate)

    def __init__(self) -> None:
        super().__init__()
        self.branch = self.Branch(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        up = self.up(self.code(a))
        self.branch.gate = up.detach().sigmoid()
        return self.head(up * self.branch(a))


class CheckpointedBranch(Base):
    """The branch is computed again in the backward pass, together with what depends on the code."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        z = self.code(a)
        return self.head(checkpoint(lambda a, z: self.branch(a).tanh() * self.up(z).tanh(), a, z, use_reentrant=False))


SKIPPED = [LateBranch]
DEPENDENT = [
    BranchOfTheCodeWithoutGraph,
    BranchOfAnIndex,
    BranchOfAChangedMemory,
    BranchByAChoice,
    BranchByACount,
    BranchOfForeignCode,
    BranchOfHiddenState,
    CheckpointedBranch,
]


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
