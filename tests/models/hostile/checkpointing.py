"""Parts that are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.models.case import Case, entered_in
from tests.models.parts import Base

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


@hostile("code")
class CheckpointedEncoder(Base):
    """Recomputed in the backward pass, when nothing stands in for anything any more."""

    def forward(self, x: Tensor) -> Tensor:
        a = checkpoint(self.stem, x, use_reentrant=False)
        return self.head(self.up(self.code(a)) + a)


@hostile("code", fast=False)
class CheckpointedFunction(Base):
    """A checkpointed function mixes a module with saved results of its own."""

    def forward(self, x: Tensor) -> Tensor:
        a = checkpoint(lambda x: self.stem(x).exp().sin(), x, use_reentrant=False)
        return self.head(self.up(self.code(a)) + a)


@hostile("code")
class CheckpointedDecoder(Base):
    """What follows the code is computed again, from the code that the backward pass finds."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        y = checkpoint(lambda z, a: F.relu(self.up(z)) + a, self.code(a), a, use_reentrant=False)
        return checkpoint(self.head, y, use_reentrant=False)


@hostile("stem")
class CheckpointedBlockIsTapped(Base):
    """The block itself is checkpointed, and nothing else is in the region."""

    def forward(self, x: Tensor) -> Tensor:
        a = checkpoint(self.stem, x, use_reentrant=False)
        return self.head(self.up(self.code(a)) + a)


class Checkpointed(Base):
    """Checkpoints the part that is asked for."""

    def __init__(self, part: str, reentrant: bool) -> None:
        super().__init__()
        self.part, self.reentrant = part, reentrant

    def run(self, part: str, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        if part != self.part:
            return function(*args)
        return checkpoint(function, *args, use_reentrant=self.reentrant)

    def forward(self, x: Tensor) -> Tensor:
        def whole(x: Tensor) -> Tensor:
            a = self.run("before", lambda x: self.stem(x).sin(), x)
            return self.run("after", lambda z, a: self.up(z.exp()) + a, self.run("code", self.code, a), a)

        return self.head(self.run("around", whole, x))
