"""What a tap takes: layers, objectives, and transforms and changes as this room sees them, which knows no method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from latentaug.tracing.location import Location

Layer: TypeAlias = str | nn.Module | Location
Objective: TypeAlias = Callable[[Any], Tensor]
"""The loss of what the model returns, as a function of it."""

Divergence: TypeAlias = Callable[[Any, Any], Tensor]
"""How far what the model returns is from what it returned of the code as it was."""


@runtime_checkable
class Sampled(Protocol):
    """A change as this room sees it: a `latentaug.Change`."""

    params: dict[str, Any]

    @property
    def whole_pass(self) -> bool:
        """Whether it changes all that was computed before the code and is read after it."""

    def apply(self, code: Tensor) -> Tensor:
        """Return the changed code."""

    def __call__(self, code: Tensor) -> Tensor:
        """Return the changed code."""


@runtime_checkable
class Sampler(Protocol):
    """A transform as this room sees it: a `latentaug.LatentTransform`."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What it asks for beyond the code."""

    def make_params(self, code: Tensor, context: Any) -> dict[str, Any]:
        """Sample what a change consists of."""

    def __call__(self, code: Tensor, saliency: Any = None, **given: Any) -> Any:
        """Sample a change."""


New: TypeAlias = Tensor | Callable[[Tensor], Tensor] | Sampled | Sampler | None
"""What a replay takes in place of a code."""
