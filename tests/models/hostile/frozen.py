"""Models, or parts of them, that no gradient reaches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.case import Case, entered_in
from tests.models.hostile.skips import SkipConnection
from tests.models.parts import Base

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


@hostile("code")
class FrozenEncoder(SkipConnection):
    """Nothing up to the code requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem.requires_grad_(False)
        self.code.requires_grad_(False)


@hostile("code")
class EncoderWithoutGraph(Base):
    """The encoder runs under no_grad, whatever its parameters want."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            a = F.relu(self.stem(x))
            z = self.code(a)
        return self.head(self.up(z) + a)


@hostile("code")
class FrozenModel(SkipConnection):
    """Nothing at all requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
