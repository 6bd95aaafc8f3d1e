"""Describe a model's latent codes: what tapping each of them would bring."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from latentaug.checks import called_on_example
from latentaug.discovery.bottleneck import ranked
from latentaug.discovery.candidates import Candidate, results_of
from latentaug.discovery.codes import fine_code
from latentaug.table import html_table
from latentaug.tap.plan import Clock, make_plan
from latentaug.tap.proof import captured, relative_change
from latentaug.tracing.isolation import preserved_modes, sandbox
from latentaug.tracing.location import Location, Spot, as_inputs, device_of, image_in, unwrap
from latentaug.tracing.record import Call
from latentaug.tracing.tree import map_tensors, tensors_in

_ROWS, _ROWS_PER_GRID, _REPEATS = 6, 2, 3


_FAINT = 1e-4  # influence below which rounding drowns it


@dataclass(frozen=True)
class Row:
    """One candidate of a `Description`.

    Args:
        location: Where the code is.
        type: Type of the module that returns it.
        chosen: Whether it is the bottleneck.
        saved: Fraction of the forward's time that a replay saves; None if the model cannot be replayed from here.
        influence: ‖f(code = 0) - f‖ / ‖f‖; None if it cannot be replayed, or no
            signal reaches the output; 0 if nothing reads it.
        refusal: Why it cannot be replayed, if so.
        fine: Whether it is the code that `find_codes` names for images, where that is another than the bottleneck.
    """

    location: Location
    type: str
    chosen: bool
    saved: float | None
    influence: float | None
    refusal: str | None = None
    fine: bool = False

    @property
    def leak(self) -> float | None:
        """Share of the output that does not pass through the code: 1 - influence, clipped to 0..1."""
        return None if self.influence is None else min(max(1 - self.influence, 0.0), 1.0)


@dataclass(frozen=True)
class Description:
    """Candidates for the tap of a model; shown as a table.

    Args:
        model: Type of the model.
        rows: The candidates; the first is the bottleneck.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1))
        >>> found = describe(model, torch.randn(1, 1, 16, 16))
        >>> print(repr(found).splitlines()[0])
        Sequential: * is the layer that layer=None taps
        >>> found.rows[0].location.stride, found.rows[0].type
        ((2, 2), 'Conv2d')
    """

    model: str
    rows: list[Row]

    def __repr__(self) -> str:
        table = [_HEAD, *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        return "\n".join([self._title(), *(line.rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        return html_table(_HEAD, map(_cells, self.rows), self._title())

    def _title(self) -> str:
        marks = "* is the layer that layer=None taps"
        if any(row.fine for row in self.rows):
            marks += ", + the one that find_codes names for images"
        return f"{self.model}: {marks}"


_HEAD: tuple[str, ...] = ("", "layer", "type", "shape", "layout", "stride", "saves", "influence", "leak")


def _cells(row: Row) -> tuple[str, ...]:
    if row.saved is None:
        effects = (f"cannot be replayed: {row.refusal}", "", "")
    elif row.influence is None or row.leak is None:
        effects = (f"{row.saved:.0%}", "n/a", "n/a, signal dead: train first")
    else:
        effects = (f"{row.saved:.0%}", f"{row.influence:.3f}", f"{row.leak:.3f}")
    shape, stride = ("x".join(map(str, sizes)) for sizes in (row.location.shape, row.location.stride))
    mark = "*" if row.chosen else "+" if row.fine else ""
    return (mark, str(row.location), row.type, shape, str(row.location.layout), stride, *effects)


def describe(model: nn.Module, example: Any, *, logits: Callable[[Any], Any] | None = None) -> Description:
    """List a model's latent codes, with what tapping each of them would bring; shown as a table.

    For the bottleneck, for the fine code (see `find_codes`), and for the widest codes of each grid beside or around
    them: path, type of module, shape, layout, stride, the share of the forward's time that a replay saves, and the
    *influence* ‖f(code = 0) - f‖ / ‖f‖ with its complement, the *leak*: what skip connections carry past the code. In
    eval mode, on the first sample of the example; timings are the shortest of a few.

    Args:
        model: Any segmentation model.
        example: An input batch, as in `find_bottleneck`.
        logits: Reads the logits from the model's output. Default as in `find_bottleneck`.

    Raises:
        TypeError: `model` is no module, or `example` no input.
        ValueError: No submodule returns a code that is coarser than the input.
        RuntimeError: The model can't be called on the example.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1))
        >>> [str(row.location) for row in describe(model, torch.randn(1, 1, 16, 16)).rows]
        ['0']
    """
    root = unwrap(model)
    inputs = as_inputs(example)
    with called_on_example("describe", root, example):
        candidates = ranked(root, *inputs, logits)
    with preserved_modes(root), sandbox(root, device_of(root, *inputs)):
        root.eval()
        bottleneck, *others = candidates
        fine = fine_code(bottleneck, others)
        rows = [
            _row(root, c, inputs, logits, chosen=c is bottleneck, fine=c is fine and c is not bottleneck)
            for c in _shown(bottleneck, others, fine)
        ]
    return Description(type(root).__name__, rows)


def _shown(bottleneck: Candidate, others: Sequence[Candidate], fine: Candidate) -> list[Candidate]:
    """Keep the bottleneck, the fine code, and a few of each grid among the codes of their level and those around it."""
    levels = list(_enclosing(bottleneck.call))
    shown = [bottleneck] if fine is bottleneck else [bottleneck, fine]
    grids = Counter(candidate.stride for candidate in shown)
    for candidate in others:
        if candidate is not fine and candidate.call.parent in levels and grids[candidate.stride] < _ROWS_PER_GRID:
            shown.append(candidate)
            grids[candidate.stride] += 1
    kept = shown[:_ROWS]
    return [candidate for candidate in (bottleneck, *others) if candidate in kept]


def _enclosing(call: Call) -> Iterator[Call]:
    while call.parent is not None:
        call = call.parent
        yield call


Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def _row(
    model: nn.Module,
    candidate: Candidate,
    inputs: Inputs,
    logits: Callable[[Any], Any] | None,
    *,
    chosen: bool,
    fine: bool,
) -> Row:
    kind = type(model.get_submodule(candidate.call.name)).__name__
    spot = Spot(candidate.call.name, candidate.path)
    refusal = ""
    for part in (_first_sample(inputs), inputs):  # some models insist on the batch they were called with
        try:
            saved, influence = _effect(model, spot, part, logits)
        except Exception as error:  # whatever a model raises that cannot be run again
            refusal = str(error).split(". ")[0].splitlines()[0]
        else:
            return Row(candidate.location, kind, chosen, saved, influence, fine=fine)
    return Row(candidate.location, kind, chosen, None, None, refusal, fine)


def _first_sample(inputs: Inputs) -> Inputs:
    image = image_in(inputs)
    batch = None if image is None else image.shape[0]
    cut: Inputs = map_tensors(inputs, lambda t: t[:1] if t.ndim and t.shape[0] == batch else t)
    return cut


def _effect(
    model: nn.Module, spot: Spot, inputs: Inputs, logits: Callable[[Any], Any] | None
) -> tuple[float, float | None]:
    plan = make_plan(model, (spot,), -1, *inputs)
    forward, replay = math.inf, math.inf
    device = device_of(model, *inputs)
    with torch.no_grad():
        for _ in range(_REPEATS):
            own: Inputs = map_tensors(inputs, torch.clone)  # which the model may change
            clock = Clock(device)
            capture, output = captured(model, plan, *own)
            forward = min(forward, clock.seconds())
            clock = Clock(device)
            without = capture.replay([torch.zeros_like])
            replay = min(replay, clock.seconds())
        read = functools.partial(results_of, logits=logits)
        influence = relative_change(read(without), read(output))
        if influence < _FAINT:
            poisoned = read(capture.replay([lambda code: torch.full_like(code, math.nan)]))
            dead = any(bool(tensor.isnan().any()) for _, tensor in tensors_in(poisoned))
            return max(0.0, 1 - replay / forward), None if dead else 0.0  # or else nothing reads it
    return max(0.0, 1 - replay / forward), influence
