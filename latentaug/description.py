"""Describe a model's latent codes: what tapping each of them would bring."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.discovery import Location, as_inputs, ranked, unwrap
from latentaug.modes import preserved_modes
from latentaug.planning import captured, make_plan, relative_change, sandbox
from latentaug.replay import Spot, device_of


@dataclass(frozen=True)
class Row:
    """One candidate of a `Description`."""

    location: Location
    type: str
    chosen: bool
    saved: float
    influence: float | None

    @property
    def leak(self) -> float | None:
        """Share of the output that does not pass through the code: 1 - influence, clipped to 0..1."""
        return None if self.influence is None else min(max(1 - self.influence, 0.0), 1.0)


@dataclass(frozen=True)
class Description:
    """Candidates for the tap of a model; print it."""

    model: str
    rows: list[Row]

    def __str__(self) -> str:
        head = ("", "layer", "type", "shape", "layout", "stride", "saves", "influence", "leak")
        body = [
            (
                "*" if row.chosen else "",
                str(row.location),
                row.type,
                "x".join(map(str, row.location.shape)),
                str(row.location.layout),
                "x".join(map(str, row.location.stride)),
                f"{row.saved:.0%}",
                "n/a" if row.influence is None else f"{row.influence:.3f}",
                "n/a, signal dead: train first" if row.leak is None else f"{row.leak:.3f}",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *body]
        ]
        return "\n".join([f"{self.model}: * is the layer that layer=None takes", *(line.rstrip() for line in lines)])


def describe(model: nn.Module, example: Any, *, logits: Callable[[Any], Tensor] | None = None) -> Description:
    """List a model's latent codes, with what tapping each of them would bring; print the result.

    For every candidate: path, type of module, shape, layout, stride, the share of the forward's time that a replay
    saves, and the *influence* ‖f(code = 0) - f‖ / ‖f‖ with its complement, the *leak*: what skip connections carry
    past the code. Timings are of one run each, in eval mode.

    Args:
        model: Any segmentation model.
        example: An input batch, as in `find_bottleneck`.
        logits: Reads the logits from the model's output. Default: every tensor in it counts.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1))
        >>> [str(row.location) for row in describe(model, torch.randn(1, 1, 16, 16)).rows]
        ['0']
    """
    root = unwrap(model)
    args, kwargs = as_inputs(example)
    candidates = ranked(root, args, kwargs, logits)
    shown = candidates[:1] + [c for c in candidates[1:] if c.call.parent is None or c.call.parent.name == ""][:11]
    rows = []
    with preserved_modes(root), sandbox(root, device_of(root, args, kwargs)):
        root.eval()
        for candidate in shown:
            spot = Spot(candidate.call.name, candidate.path)
            saved, influence = _effect(root, spot, candidate.call.number, args, kwargs, logits)
            kind = type(root.get_submodule(candidate.call.name)).__name__
            rows.append(Row(candidate.location, kind, candidate is candidates[0], saved, influence))
    return Description(type(root).__name__, rows)


def _effect(
    model: nn.Module,
    spot: Spot,
    call: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    logits: Callable[[Any], Tensor] | None,
) -> tuple[float, float | None]:
    plan = make_plan(model, (spot,), call, args, kwargs)
    with torch.no_grad():
        start = time.perf_counter()
        capture, output = captured(model, plan, args, kwargs)
        middle = time.perf_counter()
        without = capture.replay([torch.zeros_like])
        end = time.perf_counter()
    influence = relative_change(*(result if logits is None else logits(result) for result in (without, output)))
    return max(0.0, 1 - (end - middle) / (middle - start)), None if influence < 1e-4 else influence
