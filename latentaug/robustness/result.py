"""What was measured: Dice by model, shift and severity, with intervals; as text, HTML, JSON and a figure."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from latentaug.figure import new_figure
from latentaug.table import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN = "none"
"""What images without a shift are called; their severity is 0."""
FAILED = 0.1
"""A case whose Dice is below is a total failure."""
RESAMPLES = 2000
ABOUT = (
    "Dice is the mean over the classes of a case that are labelled or predicted; a case is one image of the loader. "
    f"Intervals are 95 % percentile bootstraps over cases, {RESAMPLES} resamples, seeded; they say nothing of another "
    f"training. Failures are cases whose Dice is below {FAILED:g}. A case in which nothing is labelled has no Dice for "
    "a model that finds nothing there; where another finds something, it counts as 1 in the gain."
)


class Cell(NamedTuple):
    """How well a model does under a shift at a severity.

    Attributes:
        dice: Mean over cases.
        low, high: Its 95 % interval.
        failures: Fraction of cases whose Dice is below 0.1.
        gain: By how much it is above the first model, case by case, with the interval in `gain_low` and `gain_high`;
            None for the first itself.
    """

    model: str
    shift: str
    severity: int
    dice: float
    low: float
    high: float
    failures: float
    gain: float | None
    gain_low: float | None
    gain_high: float | None


@dataclass(frozen=True)
class Robustness:
    """Dice of one or several models under shifts, case by case.

    Args:
        scores: By model, shift and severity, the Dice of each case; NaN where there is nothing to be found.

    Example:
        >>> found = Robustness({("unet", "none", 0): [0.9, 0.8], ("unet", "blur", 1): [0.8, 0.6]})
        >>> found
        Robustness(1 model, 1 shift, 2 cases: unet 0.850, shifted 0.700)
        >>> found.cell("unet", "blur", 1).dice
        0.7
    """

    scores: dict[tuple[str, str, int], list[float]] = field(repr=False)

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order they were given."""
        return list(dict.fromkeys(model for model, _, _ in self.scores))

    @property
    def shifts(self) -> list[str]:
        """Names of the shifts, without "none"."""
        return [shift for shift in dict.fromkeys(shift for _, shift, _ in self.scores) if shift != CLEAN]

    def severities(self, shift: str) -> list[int]:
        """Return the severities of a shift."""
        return sorted({severity for _, name, severity in self.scores if name == shift})

    def cell(self, model: str, shift: str = CLEAN, severity: int = 0) -> Cell:
        """Return how well a model does under one shift."""
        return self._summary(model, shift, severity, [(shift, severity)])

    def average(self, model: str) -> Cell:
        """Return how well a model does on average over all shifts and severities, each weighing alike."""
        return self._summary(model, "average", 0, [(name, at) for name in self.shifts for at in self.severities(name)])

    @property
    def cells(self) -> list[Cell]:
        """All of them, clean images first, and the average over shifts last."""
        return [
            *(self.cell(*key) for key in self.scores),
            *(self.average(model) for model in self.models if self.shifts),
        ]

    def _summary(self, model: str, shift: str, severity: int, keys: Sequence[tuple[str, int]]) -> Cell:
        mean, low, high = interval(_means([self.scores[(model, *key)] for key in keys]))
        failed = [value < FAILED for key in keys for value in self.scores[(model, *key)] if value == value]
        failures = sum(failed) / len(failed) if failed else math.nan
        gain: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
        if model != self.models[0]:
            first = self.models[0]
            gain = interval(_means([_gain(self.scores[(model, *k)], self.scores[(first, *k)]) for k in keys]))
        return Cell(model, shift, severity, mean, low, high, failures, *gain)

    # Showing ------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Say in a line what was measured."""
        cases = len(next(iter(self.scores.values())))
        means = "; ".join(f"{name} {self.cell(name).dice:.3f}{self._shifted(name)}" for name in self.models)
        return f"Robustness({_count(self.models, 'model')}, {_count(self.shifts, 'shift')}, {cases} cases: {means})"

    def _shifted(self, model: str) -> str:
        return f", shifted {self.average(model).dice:.3f}" if self.shifts else ""

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Return a table: a line for each shift and severity, for each model its Dice, and its gain over the first."""
        first, *others = self.models
        header = ["shift", "severity", first]
        for name in others:
            header += [name, f"{name} over {first}"]
        keys = [(CLEAN, 0), *((shift, at) for shift in self.shifts for at in self.severities(shift))]
        lines = [
            [shift, str(at or ""), *self._shown([self.cell(name, shift, at) for name in self.models])]
            for shift, at in keys
        ]
        if self.shifts:
            lines.append(["average of shifts", "", *self._shown([self.average(name) for name in self.models])])
            failed = [f"{100 * self.average(name).failures:.1f} %" for name in self.models]
            lines.append(["failures under shifts", "", failed[0], *(text for one in failed[1:] for text in (one, ""))])
        return header, lines

    def _shown(self, cells: Sequence[Cell]) -> list[str]:
        shown = []
        for cell in cells:
            shown.append(_interval_shown([cell.dice, cell.low, cell.high], "{:.3f}"))
            gains = [100 * value for value in (cell.gain, cell.gain_low, cell.gain_high) if value is not None]
            shown += [_interval_shown(gains, "{:+.1f}")] if gains else []
        return shown

    def to_markdown(self) -> str:
        """Return the table in Markdown, and what its numbers are."""
        header, lines = self.rows()
        return "\n".join([_line(header), _line(["---"] * len(header)), *map(_line, lines), "", ABOUT, ""])

    def _repr_html_(self) -> str:
        return f"{html_table(*self.rows())}<p>{escape(ABOUT)}</p>"

    def to_json(self) -> str:
        """Return the summaries, and the Dice of each case, as JSON; null where there is nothing to be found."""
        scores = [
            {
                "model": model,
                "shift": shift,
                "severity": at,
                "dice": [*map(_known, values)],
            }
            for (model, shift, at), values in self.scores.items()
        ]
        cells = [{name: _known(value) for name, value in cell._asdict().items()} for cell in self.cells]
        return json.dumps({"cells": cells, "scores": scores}, indent=1, allow_nan=False)

    def plot(self) -> Figure:
        """Draw Dice against severity, a panel for each shift, a line for each model; needs matplotlib."""
        columns = min(4, max(1, len(self.shifts)))
        rows = max(1, math.ceil(len(self.shifts) / columns))
        figure = new_figure(2.6 * columns, 2.3 * rows + 0.4)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for panel, shift in zip(panels.flat, self.shifts, strict=False):
            for name in self.models:
                cells = [self.cell(name), *(self.cell(name, shift, at) for at in self.severities(shift))]
                at = [cell.severity for cell in cells]
                (line,) = panel.plot(at, [cell.dice for cell in cells], marker="o", markersize=3, label=_plain(name))
                panel.fill_between(
                    at, [c.low for c in cells], [c.high for c in cells], alpha=0.15, color=line.get_color()
                )
            panel.set_title(_plain(shift), fontsize=9)
            panel.set_xticks(at)
            panel.grid(alpha=0.3)
        for panel in panels.flat[len(self.shifts) :]:
            panel.set_axis_off()
        figure.supxlabel("severity", fontsize=9)
        figure.supylabel("Dice", fontsize=9)
        figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
        return figure

    def write(self, folder: str | Path) -> Path:
        """Write `robustness.json`, `.md`, `.html` and, where matplotlib is installed, `.png`; return the folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "robustness.json").write_text(self.to_json(), encoding="utf-8")
        (path / "robustness.md").write_text(self.to_markdown(), encoding="utf-8")
        shown = ""
        if importlib.util.find_spec("matplotlib") is not None:
            self.plot().savefig(path / "robustness.png", dpi=150)
            shown = '<p><img src="robustness.png" alt="Dice against severity"></p>'
        page = PAGE.format(table=self._repr_html_(), figure=shown)
        (path / "robustness.html").write_text(page, encoding="utf-8")
        return path


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Robustness</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }}
img {{ max-width: 100%; }}
</style></head><body><h1>Robustness</h1>{figure}{table}</body></html>
"""


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean over cases and its 95 % interval, by a seeded percentile bootstrap; NaN cases are left out.

    Example:
        >>> interval(np.array([0.5, 0.5, np.nan]))
        (0.5, 0.5, 0.5)
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan, math.nan
    chosen = np.random.default_rng(0).integers(len(known), size=(RESAMPLES, len(known)))
    low, high = np.quantile(known[chosen].mean(1), [0.025, 0.975])
    return float(known.mean()), float(low), float(high)


def _means(values: Sequence[Sequence[float] | npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return for each case the mean over some shifts."""
    rows = np.array(values)
    known = ~np.isnan(rows)
    return np.where(known.any(0), np.where(known, rows, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def _gain(own: Sequence[float], first: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return by how much each case is above that of the first model; to rightly find nothing is worth 1."""
    one, other = np.array(own), np.array(first)
    both = np.isnan(one) & np.isnan(other)
    return np.where(both, np.nan, np.nan_to_num(one, nan=1.0) - np.nan_to_num(other, nan=1.0))


def _known(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(name: str) -> str:
    """Return a name as matplotlib shows it, which takes what is between two dollar signs for a formula."""
    return name.replace("$", r"\$")


def _interval_shown(values: Sequence[float], form: str) -> str:
    """Write a mean and its interval; a dash where there is none."""
    return "-" if math.isnan(values[0]) else "{} ({} to {})".format(*map(form.format, values))


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def _count(of: Sequence[object], what: str) -> str:
    return f"{len(of)} {what}{'' if len(of) == 1 else 's'}"
