"""Memory that is changed in place, or known under several names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.case import Case, entered_in
from tests.models.parts import Base, conv

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


@hostile("code")
class StatementActivation(Base):
    """`self.relu(a)` changes `a`, and nobody takes what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        self.relu(a)
        z = self.code(a)
        return self.head(self.up(z) * a)


@hostile("code")
class ActivationBehindTheTap(Base):
    """What follows changes the code in place."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.code(self.stem(x))
        z += 1
        return self.head(self.up(self.relu(z)))


@hostile("code")
class PlusEqualsOnRecord(Base):
    """The first replay spoils the record for the second."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        a += self.up(self.code(a * 1))
        a.relu_()
        return self.head(a)


@hostile("code")
class InPlaceBetweenModules(Base):
    """Functional `relu_` and `+=` on what modules returned, before the code and after."""

    def __init__(self) -> None:
        super().__init__()
        self.side = conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        a *= 2
        b = self.side(x)
        b += a
        z = self.code(F.relu_(b))
        a += self.up(z)
        return self.head(F.relu_(a) * b)


@hostile("code")
class InputChangedInPlace(Base):
    """The input is normalised where it stands."""

    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean((2, 3), keepdim=True)
        x /= x.std((2, 3), keepdim=True)  # no graph leads through an input that needs no gradient
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a) * x[:, :2]


@hostile("code")
class AliasingIdentity(Base):
    """`a` and `b` are one memory under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.identity = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = self.identity(a)
        a += self.up(self.code(b * 1))
        return self.head(a * b.tanh())


@hostile("code")
class AliasingViews(Base):
    """Two calls return views of one memory, and one of them is changed afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Half(0)
        self.second = Half(1)
        self.whole = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        low, high, whole = self.first(a), self.second(a), self.whole(a)
        z = self.up(self.code(a * 1))
        high.mul_(2)
        low += z[:, :2]
        return self.head(whole + z) * low.mean() * high.mean()


class Half(nn.Module):
    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 2 * self.which : 2 * self.which + 2]


@hostile("code")
class ReturnsItsInput(Base):
    """A call returns what it was given, and that is changed in place later."""

    def __init__(self) -> None:
        super().__init__()
        self.split = Split()

    def forward(self, x: Tensor) -> Tensor:
        given, doubled = self.split(self.stem(x))
        z = self.code(doubled)
        given.mul_(doubled)
        return self.head(self.up(z) + given)


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x * 2


@hostile("encoder", path=(1,), fast=False)
class CodeBesideItsInput(nn.Module):
    """The tapped module hands its input through, and that is changed in place later."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder = conv(3, 4), Through()
        self.up, self.head = nn.ConvTranspose2d(6, 4, 2, 2), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        through, z = self.encoder(a)
        through.mul_(self.up(z))
        return self.head(a + 1)


class Through(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = conv(4, 6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.down(x * 2)


@hostile("code")
class ReturnsItsWeight(Base):
    """A call returns a weight itself, before the code and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = Positions()

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x) + self.positions())
        return self.head(self.up(self.code(a)) + a * self.positions())


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 16, 16))

    def forward(self) -> Tensor:
        return self.weight


@hostile("code", path=(0,))
class CodeIsAView(nn.Module):
    """Mean and log variance are two halves of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.up = Halves(), nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.code(x)
        return self.up(mean + torch.randn_like(mean) * variance.exp())


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).chunk(2, 1)


@hostile("code")
class CodeIsExpanded(Base):
    """The code's channels are one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.code = OneForAll()

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a)


class OneForAll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).expand(-1, 6, -1, -1)
