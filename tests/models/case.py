"""A model with a code to tap, built alike every time.

Models are built in float64, so that gradients may be compared to twelve digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One model: how to build it, what to tap, and whether a fast replay may skip part of it."""

    build: Callable[[], nn.Module]
    layer: str
    fast: bool = True
    path: tuple[Any, ...] = ()
    call: int = -1
    shape: tuple[int, ...] = (2, 3, 16, 16)
    modes: tuple[bool, ...] = (False, True)

    def model(self, train: bool) -> nn.Module:
        """Build it; the same weights every time."""
        torch.manual_seed(7)
        return self.build().double().train(train)

    def images(self, seed: int = 0) -> Tensor:
        """Draw a batch; the same for the same seed."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    @property
    def spot(self) -> str:
        """The layer with the place of the code in what it returns, as a user writes it."""
        return self.layer + "".join(f"[{key!r}]" for key in self.path)


def entered_in(cases: dict[str, Case]) -> Callable[..., Callable[[Any], Any]]:
    """Make the decorator that enters a model into a table under its own name."""

    def entry(layer: str, **options: Any) -> Callable[[Any], Any]:
        def enter(build: Any) -> Any:
            cases[build.__name__] = Case(build, layer, **options)
            return build

        return enter

    return entry
