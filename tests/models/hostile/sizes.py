"""Models that do something to large images only: what smaller ones show of them is not all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.models.case import Case, entered_in
from tests.models.hostile.branches import Branched
from tests.models.parts import Base, conv

CASES: dict[str, Case] = {}
sized = entered_in(CASES)
LARGE = (2, 3, 64, 64)


def is_large(x: Tensor) -> bool:
    return x.shape[-1] > 48


class KeepingStem(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        a = super().forward(x)
        if is_large(x):
            self.kept = a
        return a


@sized("code", fast=False, shape=LARGE)
class SkipsOnSelfIfLarge(Base):
    """A module that a replay would like to skip leaves the skip connection of large images on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = KeepingStem(3, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + (self.stem.kept if is_large(x) else a))


@sized("code", fast=False, shape=LARGE)
class CheckpointedFunctionIfLarge(Base):
    """A checkpointed function mixes a module with saved results of its own."""

    def forward(self, x: Tensor) -> Tensor:
        def begin(x: Tensor) -> Tensor:
            return self.stem(x).exp().sin()

        a = checkpoint(begin, x, use_reentrant=False) if is_large(x) else begin(x)
        return self.head(self.up(self.code(a)) + a)


@sized("code", shape=LARGE)
class BranchOfTheCodeIfLarge(Branched):
    """What comes after the code depends on it in large images only."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        up = self.up(self.code(a))
        return self.head(up * self.branch(up.detach() if is_large(x) else a))


class CheckpointedAroundTheCodeIfLarge(Base):
    """The backward pass would compute a replay of large images from the old code."""

    def forward(self, x: Tensor) -> Tensor:
        def begin(x: Tensor) -> Tensor:
            return self.up(self.code(self.stem(x)).exp())

        return self.head(checkpoint(begin, x, use_reentrant=False) if is_large(x) else begin(x))


@sized("code", shape=LARGE)
class RefusesSmallImages(Base):
    """Models of one size do."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_large(x):
            raise ValueError("too small\nand more")
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a)


@sized("code", shape=LARGE)
class SinglePositionIfSmall(nn.Module):
    """A code of one position says nothing of where it is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.code, self.head = conv(3, 4, 2), nn.Conv2d(4, 6, 16, 16), conv(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(torch.cat([F.interpolate(self.code(a), a.shape[2:]), a], 1))
