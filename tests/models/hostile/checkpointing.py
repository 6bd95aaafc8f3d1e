"""Parts that are computed again in the backward pass."""

from __future__ import annotations

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
