"""Buffers that move with every pass in train mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.case import Case, entered_in
from tests.models.parts import Base

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


@hostile("code")
class OldSpectralNorm(Base):
    """Weights recomputed by a hook from vectors that move with every pass in train mode."""

    def __init__(self) -> None:
        super().__init__()
        for module in (self.stem, self.code, self.head):
            nn.utils.spectral_norm(module)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a)


@hostile("code")
class NewSpectralNorm(Base):
    """The same by parametrization."""

    def __init__(self) -> None:
        super().__init__()
        for module in (self.stem, self.code, self.head):
            nn.utils.parametrizations.spectral_norm(module)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a)


class MovingAverage(nn.Module):
    """Subtracts a mean that moves in train mode; in place, or as a new tensor each time."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            new = self.mean * 0.9 + x.detach().mean() * 0.1
            if self.in_place:
                self.mean.copy_(new)
            else:
                self.mean = new
        return x - self.mean


class WithAverages(Base):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.last = MovingAverage(in_place), MovingAverage(in_place)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(self.stem(x))
        return self.head(self.last(self.up(self.code(a))) + a)


CASES["AverageInPlace"] = Case(lambda: WithAverages(True), "code")
CASES["AverageReassigned"] = Case(lambda: WithAverages(False), "code")


class Normalised(Base):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([norm(4), norm(6), norm(4)])

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.norms[0](self.stem(x)))
        z = F.relu(self.norms[1](self.code(a)))
        return self.head(F.relu(self.norms[2](self.up(z))) + a)


CASES["BatchNorm"] = Case(lambda: Normalised(nn.BatchNorm2d), "norms.1")
CASES["BatchNormWithoutMomentum"] = Case(lambda: Normalised(lambda n: nn.BatchNorm2d(n, momentum=None)), "norms.1")
CASES["InstanceNormThatTracks"] = Case(
    lambda: Normalised(lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True)), "norms.1"
)
