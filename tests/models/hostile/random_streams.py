"""Random numbers, drawn between modules and from every stream."""

from __future__ import annotations

import random

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.case import Case, entered_in
from tests.models.parts import Base, conv

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


@hostile("code")
class FunctionalDropout(Base):
    """Random numbers are drawn between modules, before the code and behind it."""

    def forward(self, x: Tensor) -> Tensor:
        a = F.dropout(self.stem(x), 0.4, training=self.training)
        z = self.code(F.dropout(a, 0.4, training=self.training))
        y = F.dropout(self.up(z), 0.4, training=self.training)
        return self.head(y + a)


@hostile("encoder")
class DropoutInEncoder(nn.Module):
    """Random numbers are drawn in what is skipped, and again behind the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 4, 2), nn.Dropout(0.3), FunctionalDrop(), conv(4, 6, 2))
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=4), nn.Dropout2d(0.3), FunctionalDrop(), conv(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class FunctionalDrop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)


@hostile("code")
class OtherRandomStreams(Base):
    """Python's and NumPy's streams decide too."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x) * (1 + random.random())
        z = self.code(a + float(np.random.rand()))  # noqa: NPY002
        return self.head(self.up(z) * random.random() + a * float(np.random.rand()))  # noqa: NPY002
