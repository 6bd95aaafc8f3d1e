"""Modules that are called several times in one pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.case import Case, entered_in
from tests.models.parts import Base, Decoder, Pyramid, conv

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


@hostile("encoder.code")
class SharedActivation(nn.Module):
    """One activation serves encoder and decoder: whose call is the third?"""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.LeakyReLU(0.1, inplace=True)
        self.encoder = SharedEncoder(self.relu)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, z = self.encoder(x)
        y = self.relu(self.up(self.relu(z)))
        return self.relu(self.head(self.relu(y * a)))


class SharedEncoder(nn.Module):
    def __init__(self, relu: nn.Module) -> None:
        super().__init__()
        self.stem, self.code, self.relu = conv(3, 4), conv(4, 6, 2), relu

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.relu(self.stem(x))
        a = self.relu(a * 2 - 1)
        return a, self.code(a)


@hostile("relu", call=3)
class SharedBlock(nn.Module):
    """A block and an activation are called six times; the code is the activation's fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.relu, self.head = conv(3, 4), conv(4, 4), nn.ReLU(), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept = []
        for _ in range(6):
            x = self.relu(self.block(x)) + 0.1 * x
            kept.append(x)
        return self.head(kept[-1] + kept[0] * kept[2])


@hostile("code")
class TiedWeights(Base):
    """One module before the code and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.stem_like = conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.again(self.stem(x))
        y = self.up(self.code(a))
        return self.head(self.stem_like(self.again(y)) + a)


@hostile("cell")
class Recurrent(nn.Module):
    """A cell is called step by step; the last call counts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cell, self.head = conv(3, 4), conv(8, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = torch.zeros_like(x)
        states = []
        for _ in range(3):
            h = self.cell(torch.cat([x, h], 1)).tanh()
            states.append(h)
        return self.head(sum(states))


CASES["RecurrentInTheMiddle"] = Case(Recurrent, "cell", call=1)


class Siamese(nn.Module):
    """One encoder sees two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Pyramid(), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.encoder(x), self.encoder(x.flip(-1))
        return self.decoder(*(a - b * 0.5 for a, b in zip(first, second, strict=True)))


CASES["SiameseFirst"] = Case(Siamese, "encoder", path=(2,), call=0)
CASES["SiameseLast"] = Case(Siamese, "encoder", path=(2,))
