"""CodeReader: read a submodule's output, and never replay."""

from __future__ import annotations

from typing import Any

from latentaug.tap.capture import Plan
from latentaug.tap.latent_tap import LatentTap


class CodeReader(LatentTap):
    """Read the codes of a model's passes, as `LatentTap` does, without what that finds out to replay them.

    Beside taps that do replay, whose first passes cost some passes of their own, it costs nothing.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU())
        >>> with CodeReader(model, "0") as reader:
        ...     _ = model(torch.randn(2, 1, 16, 16))
        ...     reader.code.shape
        torch.Size([2, 8, 8, 8])
    """

    def _plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
        spots = self._spots(args, kwargs)
        return Plan(
            spots=spots,
            call=self._call,
            totals={spot.name: 1 for spot in spots},  # a pass counts for itself
            kept=frozenset(),
            late=frozenset(),
            cloned=frozenset(),
            clone_inputs=False,
            moving=frozenset(),
            interpreter=False,
            moves_weights=frozenset(),
            replayed=False,
            fast=False,
        )

    def draw(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise RuntimeError("A CodeReader has no replays. Use LatentTap.")

    replay = draw
