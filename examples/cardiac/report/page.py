"""The page of a run of the cardiac study: what all pages have, and Dice by thirds of the heart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cardiac.data.readers import STRUCTURES
from cardiac.run import cases
from study.report import page
from study.report.figures import Line, panel
from study.report.page import PAGE
from study.run.outputs import Finished, Outputs
from study.run.scores import PART, mean_of_known

__all__ = ["PAGE", "write_page"]


def write_page(outputs: Outputs, runs: Sequence[Finished], notes: Sequence[str]) -> Path:
    """Write `report.html` as `study.report.page.write_page` does."""
    return page.write_page(
        outputs,
        runs,
        notes,
        template="cardiac/report/page.html",
        across=2 * cases.KEPT,
        positions=_positions(outputs, runs, page.colours_of(runs)),
    )


def _positions(outputs: Outputs, runs: Sequence[Finished], colours: Mapping[str, str]) -> dict[str, Any]:
    """Draw and list 2-D Dice by thirds of the heart, by column and by structure, of each method's last stage."""
    kept, missing = page.kept_by(outputs, runs, lambda place: cases.read_slices(place / cases.SLICES))
    values: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    for run, slices in kept:
        per_key = cases.by_third(slices, slices[-1].stage)
        columns = dict.fromkeys(column for column, _ in per_key)
        groups = {("column", column): [per_key[column, name] for name in STRUCTURES] for column in columns}
        groups |= {
            ("structure", name): [per_key[column, name] for column in columns if PART not in column]
            for name in STRUCTURES
        }
        for key, thirds in groups.items():
            values.setdefault(key, {}).setdefault(run.method, []).append(_means(thirds))
    means = {key: {method: _means(draws) for method, draws in methods.items()} for key, methods in values.items()}
    shown = [value for methods in means.values() for row in methods.values() for value in row if not math.isnan(value)]
    limits = (math.floor(10 * min(shown)) / 10, math.ceil(10 * max(shown)) / 10 + 0.02) if shown else None
    panels = [
        panel(
            name,
            [Line(range(len(row)), row, colours[method]) for method, row in methods.items()],
            categories=cases.THIRDS,
            limits=limits,
        )
        for (_, name), methods in means.items()
    ]
    lines = [
        (name, method, [_number(value) for value in row])
        for (kind, name), methods in means.items()
        if kind == "column"
        for method, row in methods.items()
    ]
    return {"panels": panels, "lines": lines, "thirds": cases.THIRDS, "missing": missing}


def _means(rows: Iterable[Sequence[float]]) -> list[float]:
    """Average rows place by place, leaving out what is NaN."""
    return [mean_of_known(place) for place in zip(*rows, strict=True)]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
