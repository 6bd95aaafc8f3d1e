"""A run as one page: everything that its folder holds, in a single HTML file that needs nothing else."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zipfile import BadZipFile

import jinja2
import numpy as np
from markupsafe import Markup

import latentaug

from . import cases, moments
from .comparison import REFERENCE
from .data import STRUCTURES
from .figures import DASHES, LABEL, PREDICTION, Line, case_picture, hues, moment_picture, panel, slices_picture
from .metrics import PART, Cell, Score, mean_of_known, summarise
from .outputs import Finished, Outputs
from .report import AVERAGE, Row, columns_of, replacing, tabulate

PAGE = "report.html"

Kept = TypeVar("Kept")


class Entry(NamedTuple):
    """One cell of a table: its text, how many points it is ahead of the baseline, and whether it leads its column."""

    text: str
    difference: str
    best: bool


def environment(command: str) -> dict[str, str]:
    """Return when, by which command and with which versions this runs; for `done.json`."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "python": platform.python_version(),
        "system": platform.platform(),
        "latentaug": latentaug.__version__,
        "numpy": np.__version__,
        "torchio": version("torchio"),
    }


def write_page(outputs: Outputs, runs: Sequence[Finished], notes: Sequence[str]) -> None:
    """Write `report.html` from what the output folder keeps, whole or not at all.

    What a training did not keep, as it was run before that was kept, is named in a note in its section.

    Args:
        outputs: The folder and its configuration.
        runs: What `Outputs.finished` gives.
        notes: What a reader of the results should know.
    """
    scores = [score for run in runs for score in run.scores if score.metric == "dice"]
    colours = hues([*dict.fromkeys(run.method for run in runs)])
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = page.get_template("page.html").render(
        headline=headline(scores),
        quick=outputs.configuration["preset"] == "quick",
        methods=colours,
        draws=[*zip(sorted({run.draw for run in runs}), ("solid", "dashed", "dotted"), strict=False)],
        structures=", ".join(STRUCTURES),
        label=LABEL,
        prediction=PREDICTION,
        baseline=REFERENCE,
        table=table(scores),
        vendors=table(scores, parts=True),
        curves=_curves(runs, colours),
        positions=_positions(outputs, runs, scores, colours),
        cases=_cases(outputs, runs),
        moments=_moments(outputs, runs),
        configuration=_flat(outputs.configuration),
        about=[(f"{run.method}, draw {run.draw}", _flat({**run.about, "notes": None})) for run in runs],
        notes=notes,
    )
    with replacing(outputs.folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")


# The result -----------------------------------------------------------------------------------------------------------


def headline(scores: Sequence[Score]) -> str:
    """Say in one sentence which method has the best average, and how far it is from the one to compare it with."""
    rows = tabulate(scores)
    if not rows:
        return "Nothing is scored yet."
    best = max(rows, key=_average)
    said = f"The best average Dice is {_average(best):.3f}, by {best.method} ({best.stage})"
    rivals = [row for row in rows if row.stage == best.stage and row.method != best.method]
    if best.method != REFERENCE:
        rivals = [row for row in rivals if row.method == REFERENCE]
    gains = differences(scores, best, max(rivals, key=_average)) if rivals else {}
    if not gains:
        return f"{said}; there is nothing here to compare it with."
    ahead = [column for column in gains if PART not in column and column != AVERAGE and gains[column].mean > 0]
    columns = [column for column in gains if PART not in column and column != AVERAGE]
    draws = {score.draw for score in scores}
    return (
        f"{said}: {_points(gains[AVERAGE])} points more than {max(rivals, key=_average).method} at the same stage, and "
        f"more in {len(ahead)} of {len(columns)} columns, over {len(draws)} draw{'s' * (len(draws) > 1)}."
    )


def table(scores: Sequence[Score], *, parts: bool = False) -> tuple[list[str], list[tuple[Row, list[Entry]]]]:
    """Return a table's columns, and for every row its cells; with `parts` those for parts of columns."""
    rows = tabulate(scores)
    columns = columns_of(rows, parts=parts)
    best = {column: max(row.cells[column].mean for row in rows if column in row.cells) for column in columns}
    baselines = {row.stage: row for row in rows if row.method == REFERENCE}
    filled = []
    for row in rows:
        baseline = baselines.get(row.stage)
        gains = {} if baseline in (None, row) else differences(scores, row, baseline)
        entries = []
        for column in columns:
            cell, gain = row.cells.get(column), gains.get(column)
            text = "" if cell is None else f"{cell.mean:.3f}" + ("" if cell.spread is None else f" ± {cell.spread:.3f}")
            is_best = cell is not None and cell.mean == best[column] and len(rows) > 1
            entries.append(Entry(text, "" if gain is None else _points(gain, signed=True), is_best))
        filled.append((row, entries))
    return columns, filled


def differences(scores: Sequence[Score], row: Row, other: Row) -> dict[str, Cell]:
    """Return by column how far one row of the table is ahead of another, over the draws that both have."""
    gains: dict[str, list[float]] = {}
    for draw in sorted({*row.draws} & {*other.draws}):
        cells = {(one.method, one.stage): one.cells for one in tabulate(s for s in scores if s.draw == draw)}
        ours, theirs = cells[row.method, row.stage], cells[other.method, other.stage]
        for column in ours.keys() & theirs.keys():
            gains.setdefault(column, []).append(ours[column].mean - theirs[column].mean)
    return {column: summarise(values) for column, values in gains.items()}


def _average(row: Row) -> float:
    return row.cells[AVERAGE].mean


def _points(cell: Cell, *, signed: bool = False) -> str:
    spread = "" if cell.spread is None else f" ± {100 * cell.spread:.1f}"
    return f"{100 * cell.mean:{'+' if signed else ''}.1f}{spread}".replace("-", "−")


# The figures ----------------------------------------------------------------------------------------------------------


def _curves(runs: Sequence[Finished], colours: Mapping[str, str]) -> dict[str, list[Markup]]:
    """Draw the logged numbers of all runs, one panel for each, losses and validation scores apart."""
    names = dict.fromkeys(name for run in runs for line in run.log for name in line if name != "iteration")
    panels: dict[str, list[Markup]] = {"Losses on training batches": [], "Validation": []}
    for name in names:
        lines = [
            Line(
                [line["iteration"] for line in run.log if name in line],
                [line[name] for line in run.log if name in line],
                colours[run.method],
                DASHES[run.draw % len(DASHES)],
            )
            for run in runs
        ]
        group = "Validation" if name.startswith("val_") else "Losses on training batches"
        panels[group].append(panel(name.removeprefix("val_").replace("_", " "), lines, xlabel="iteration"))
    return {group: found for group, found in panels.items() if found}


def _positions(
    outputs: Outputs, runs: Sequence[Finished], scores: Sequence[Score], colours: Mapping[str, str]
) -> dict[str, Any]:
    """Draw and list 2-D Dice by thirds of the heart, at the last stage: by column, and by structure over columns."""
    kept, missing = _kept(outputs, runs, lambda place: cases.read_slices(place / cases.SLICES))
    stage = scores[-1].stage if scores else ""
    values: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    for run, slices in kept:
        per_key = cases.by_third(slices, stage)
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
    return {"stage": stage, "panels": panels, "lines": lines, "thirds": cases.THIRDS, "missing": missing}


def _cases(outputs: Outputs, runs: Sequence[Finished]) -> dict[str, Any]:
    """Draw worst and best frames by column and method, from the first draw of each method."""
    kept, missing = _kept(outputs, _first_draws(runs), lambda place: cases.read_cases(place / cases.CASES))
    columns: dict[str, list[tuple[Finished, list[tuple[str, cases.Case, Markup]]]]] = {}
    for run, found in kept:
        for column, group in groupby(found, key=lambda case: case.column):
            ordered = [*group]  # from worst to best
            half = len(ordered) // 2
            ranks = ["worst"] * half + ["best"] * (len(ordered) - half) if half else ["only frame"]
            shown = [(rank, case, case_picture(case)) for rank, case in zip(ranks, ordered, strict=True)]
            columns.setdefault(column, []).append((run, shown))
    return {"columns": columns, "missing": missing}


def _moments(outputs: Outputs, runs: Sequence[Finished]) -> dict[str, Any]:
    """Draw the hard examples of the first draw of each method, moment by moment."""
    kept, missing = _kept(outputs, _first_draws(runs), lambda place: moments.read_moments(place / moments.FOLDER))
    methods = [
        (
            run,
            slices_picture(found[0]),
            [(m.iteration, f"{m.iteration / run.about['iterations']:.0%}", moment_picture(m)) for m in found],
        )
        for run, found in kept
    ]
    return {"methods": methods, "missing": missing}


# Small helpers --------------------------------------------------------------------------------------------------------


def _kept(
    outputs: Outputs, runs: Sequence[Finished], read: Callable[[Path], Sequence[Kept]]
) -> tuple[list[tuple[Finished, Sequence[Kept]]], list[str]]:
    """Read what every training kept; name those that kept nothing that can be read."""
    found, missing = [], []
    for run in runs:
        try:
            kept = read(outputs.place(run.method, run.draw))
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile):
            kept = []
        if kept:
            found.append((run, kept))
        else:
            missing.append(f"{run.method}, draw {run.draw}")
    return found, missing


def _first_draws(runs: Sequence[Finished]) -> list[Finished]:
    return [next(group) for _, group in groupby(runs, key=lambda run: run.method)]


def _means(rows: Iterable[Sequence[float]]) -> list[float]:
    """Average rows place by place, leaving out what is NaN."""
    return [mean_of_known(place) for place in zip(*rows, strict=True)]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _flat(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List settings by name, those inside others with both names; what is None is left out."""
    flat = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat += [(f"{name}: {inner}", shown) for inner, shown in _flat(value)]
        elif value is not None:
            flat.append((name.replace("_", " "), str(value)))
    return flat
