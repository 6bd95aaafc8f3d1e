"""Branches that are computed after the code, and depend on it in ways that are hard to see, or not at all."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.models.parts import Base, conv


class Branched(Base):
    """An encoder of two convolutions, a branch that takes the skip connection once the code is there, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv(4, 4)


class LateBranch(Branched):
    """The branch takes the skip connection alone, and may be skipped though it comes late."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        up = self.up(self.code(a))
        return self.head(up * self.branch(F.dropout(a, 0.3, self.training)))


class BranchOfTheCodeWithoutGraph(Branched):
    """The branch takes the code, but no gradient flows back through it."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        up = self.up(self.code(a))
        return self.head(up * self.branch(up.detach()))


class BranchOfAnIndex(Branched):
    """The branch takes where the code is largest, which has no derivative."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        z = self.code(a)
        order = z.mean((0, 2, 3)).argsort()[:4] % 4
        return self.head(self.up(z) * self.branch(a[:, order]))


class BranchOfAChangedMemory(Branched):
    """The branch takes a tensor that existed before, and that the code was written into."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        kept = a.detach().clone()
        up = self.up(self.code(a))
        kept[:, 1:2] = up[:, :1].detach()
        return self.head(up * self.branch(kept))


class BranchByAChoice(Branched):
    """Whether the branch takes the skip connection or its negative is for the code to say."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        z = self.code(a)
        with torch.no_grad():
            sign = 1 if float(z.mean()) > float(z.flip(-1)[..., 0].mean()) else -1
        return self.head(self.up(z) * self.branch(sign * a))


class BranchByACount(Branched):
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


class BranchOfForeignCode(Branched):
    def __init__(self) -> None:
        super().__init__()
        self.foreign = Foreign()

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(self.code(self.stem(x)))
        return self.head(up * self.branch(self.foreign(up)))


class BranchOfHiddenState(Branched):
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


class CheckpointedBranch(Branched):
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
