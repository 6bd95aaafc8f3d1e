"""A run as one page: everything that its folder holds, in a single HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import jinja2
from markupsafe import Markup

from cardiac.data.readers import STRUCTURES
from cardiac.run import cases
from study.methods import METHODS
from study.report.comparison import ABOUT, compare, reference_of
from study.report.figures import (
    DASHES,
    LABEL,
    PREDICTION,
    Line,
    case_picture,
    hues,
    moment_picture,
    panel,
    slices_picture,
)
from study.report.result import dice_table, difference_table, forests, headline
from study.report.tables import same_draws, tabulate
from study.run import moments
from study.run.case import Case
from study.run.files import replacing
from study.run.outputs import Finished, Outputs
from study.run.scores import PART, mean_of_known

PAGE = "report.html"

Kept = TypeVar("Kept")


def write_page(outputs: Outputs, runs: Sequence[Finished], notes: Sequence[str]) -> Path:
    """Write `report.html` from what the output folder keeps, whole or not at all; return its path.

    What a training did not keep, as it was run before that was kept, is named in a note in its section.

    Args:
        outputs: The folder and its configuration.
        runs: What `Outputs.finished` gives.
        notes: What a reader of the results should know.
    """
    scores = [score for run in runs for score in run.scores if score.metric == "dice"]
    reference = reference_of(scores)
    differences = compare(scores, reference)
    tables = [(title, tabulate(part), compare(part, reference)) for title, part in same_draws(scores).items()]
    colours = hues([*dict.fromkeys(run.method for run in runs)])
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = page.get_template("page.html").render(
        headline=headline(*tables[0][1:], reference) if tables else headline([], [], reference),
        quick=outputs.configuration["preset"] == "quick",
        methods=colours,
        draws=[*zip(sorted({run.draw for run in runs}), ("solid", "dashed", "dotted"), strict=False)],
        structures=", ".join(STRUCTURES),
        label=LABEL,
        prediction=PREDICTION,
        reference=reference,
        tables=[(title, dice_table(rows, gains)) for title, rows, gains in tables],
        tables_of_parts=[(title, dice_table(rows, gains, parts=True)) for title, rows, gains in tables],
        differences=difference_table(differences),
        differences_of_parts=difference_table(differences, parts=True),
        forests=forests(differences, colours, reference),
        about_differences=ABOUT,
        curves=_curves(runs, colours),
        positions=_positions(outputs, runs, colours),
        cases=_cases(outputs, runs),
        moments=_moments(outputs, runs),
        configuration=_flat(outputs.configuration),
        about=[(f"{run.method}, draw {run.draw}", _flat({**run.about, "notes": None})) for run in runs],
        notes=notes,
    )
    with replacing(outputs.folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return outputs.folder / PAGE


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


def _positions(outputs: Outputs, runs: Sequence[Finished], colours: Mapping[str, str]) -> dict[str, Any]:
    """Draw and list 2-D Dice by thirds of the heart, by column and by structure, of each method's last stage."""
    kept, missing = _kept(outputs, runs, lambda place: cases.read_slices(place / cases.SLICES))
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


def _cases(outputs: Outputs, runs: Sequence[Finished]) -> dict[str, Any]:
    """Draw worst and best frames by draw, column and method."""
    kept, missing = _kept(outputs, runs, lambda place: cases.read_cases(place / cases.CASES))
    draws: dict[int, dict[str, list[tuple[Finished, list[tuple[str, Case, Markup]]]]]] = {}
    for run, found in kept:
        for column, group in groupby(found, key=lambda case: case.column):
            ordered = [*group]  # from worst to best
            half = len(ordered) // 2
            ranks = ["worst"] * half + ["best"] * (len(ordered) - half) if half else ["only frame"]
            shown = [(rank, case, case_picture(case)) for rank, case in zip(ranks, ordered, strict=True)]
            draws.setdefault(run.draw, {}).setdefault(column, []).append((run, shown))
    return {"draws": dict(sorted(draws.items())), "missing": missing}


def _moments(outputs: Outputs, runs: Sequence[Finished]) -> dict[str, Any]:
    """Draw the hard examples by draw and method, moment by moment, of the methods that can make them."""
    runs = [run for run in runs if METHODS[run.method].reconstructs]
    kept, missing = _kept(outputs, runs, lambda place: moments.read_moments(place / moments.FOLDER))
    draws: dict[int, list[tuple[Finished, Markup, list[tuple[int, str, Markup]]]]] = {}
    for run, found in kept:
        shown = [(m.iteration, f"{m.iteration / run.about['iterations']:.0%}", moment_picture(m)) for m in found]
        draws.setdefault(run.draw, []).append((run, slices_picture(found[0]), shown))
    return {"draws": dict(sorted(draws.items())), "missing": missing}


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
