"""What a run leaves behind: scores, tables, comparisons and figures, each written whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from cardiac.report.comparison import ABOUT, REFERENCE, Difference, compare, comparison_grid
from cardiac.run.metrics import AVERAGE, METRICS, PART, Cell, Score, column_mean, summarise

MISSED = (
    "The share of volumes in which either the prediction or the label lacks a structure. There HD95 and ASSD are "
    "undefined: they are means over the other volumes. A structure that is in neither is left out of everything."
)
AS_PUBLISHED = (
    "The one published figure that could be verified is the summary in the paper's abstract, trained on 10 patients: "
    "15 % better average Dice than standard training. The cells of its tables are not copied here; `--published "
    "FILE.csv`, with the columns method, stage, column and value, adds rows of your own."
)


class Row(NamedTuple):
    """One row of a table; `structures` splits `cells` up. Published numbers have no draws and no structures."""

    method: str
    stage: str
    draws: tuple[int, ...]
    cells: dict[str, Cell]
    structures: dict[str, dict[str, Cell]]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` and move it there on success, so that no reader meets half a file."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write scores as CSV, one number a line."""
    _write_csv(path, Score._fields, scores)


def _write_csv(path: Path, head: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(lines)


def read_scores(path: Path) -> list[Score]:
    """Read what `write_scores` wrote."""
    with path.open(newline="") as file:
        return [
            Score(**{**line, "draw": int(line["draw"]), "value": float(line["value"])}) for line in csv.DictReader(file)
        ]


def tabulate(scores: Iterable[Score], metric: str = "dice") -> list[Row]:
    """Turn the scores of a metric into rows, one for every method and stage, in the order in which they come.

    A cell is the mean over structures of what `column_mean` gives, then mean and spread over draws; the average is
    taken over columns within a draw, parts of columns left out. Where a structure, column or draw that was tested has
    no value of this metric, as distances may not, there is no cell: a mean over the rest would not compare.
    """
    groups: dict[tuple[str, str], dict[int, dict[str, list[Score]]]] = {}
    for score in scores:
        draws = groups.setdefault((score.method, score.stage), {})
        draws.setdefault(score.draw, {}).setdefault(score.column, []).append(score)
    rows = [_row(method, stage, draws, metric) for (method, stage), draws in groups.items()]
    return [row for row in rows if row.structures]


def same_draws(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """Sort scores into tables, by their titles, whose methods all have the same draws: means over others don't compare.

    There is a table for each set of draws that some method has, or two have in common, of all methods that have these,
    cut down to them.
    Tables of several methods come first, and then those of more draws.

    Example:
        >>> of = ("FTN", "ACDC", "007", "ED", "LV", "dice", 0.8)
        >>> scores = [Score("a", 0, *of), Score("a", 1, *of), Score("b", 0, *of)]
        >>> {title: len(of_these) for title, of_these in same_draws(scores).items()}
        {'draw 0': 2, 'draws 0, 1': 2}
        >>> [*same_draws([Score("a", 0, *of), Score("a", 1, *of), Score("b", 1, *of), Score("b", 2, *of)])]
        ['draw 1', 'draws 0, 1', 'draws 1, 2']
    """
    draws: dict[str, set[int]] = defaultdict(set)
    for score in scores:
        draws[score.method].add(score.draw)
    tables = []
    sets = {frozenset(found) for found in draws.values()}
    for chosen in {one & other for one in sets for other in sets} - {frozenset()}:
        alone = sum(found >= chosen for found in draws.values()) == 1
        title = f"draw{'s' * (len(chosen) > 1)} {', '.join(map(str, sorted(chosen)))}"
        of_these = [score for score in scores if score.draw in chosen and draws[score.method] >= chosen]
        tables.append((alone, -len(chosen), title, of_these))
    return {title: of_these for *_, title, of_these in sorted(tables, key=lambda table: table[:3])}


def _row(method: str, stage: str, draws: Mapping[int, Mapping[str, Sequence[Score]]], metric: str) -> Row:
    cells: dict[str, list[float]] = defaultdict(list)
    structures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for columns in draws.values():
        means = {column: _tested_mean(scores, metric) for column, scores in columns.items()}
        whole = [mean for column, mean in means.items() if PART not in column]
        average = {name: fmean(m[name] for m in whole if name in m) for mean in whole for name in mean}
        for column, per_structure in {**means, AVERAGE: average}.items():
            for structure, value in per_structure.items():
                structures[column][structure].append(value)
        for column, per_structure in means.items():
            cells[column].append(fmean(per_structure.values()))
        cells[AVERAGE].append(fmean(fmean(mean.values()) for mean in whole))
    split = {column: found for column, values in structures.items() if (found := _cells(values))}
    return Row(method, stage, tuple(sorted(draws)), _cells(cells), split)


def _tested_mean(scores: Sequence[Score], metric: str) -> dict[str, float]:
    """The mean of each structure that was tested, by whatever metric; NaN where this one has no value."""
    return dict.fromkeys((s.structure for s in scores), math.nan) | column_mean(s for s in scores if s.metric == metric)


def _cells(values: Mapping[str, Sequence[float]]) -> dict[str, Cell]:
    """Mean and spread over draws of whatever has a number in each of them."""
    return {name: summarise(found) for name, found in values.items() if not any(map(math.isnan, found))}


def columns_of(rows: Sequence[Row], *, parts: bool = False) -> list[str]:
    """Return the table's columns, the average last; with `parts` those of the second one, parts of columns."""
    found = dict.fromkeys(column for row in rows for column in row.cells if column != AVERAGE)
    return sorted(c for c in found if PART in c) if parts else [*(c for c in found if PART not in c), AVERAGE]


def grid(rows: Sequence[Row], columns: Sequence[str], digits: int = 3) -> list[list[str]]:
    """Lay rows out as text, headings first; a cell that a row lacks stays empty."""
    head = ["method", "stage", "draws", *columns]
    return [head, *([*_about(row), *(_show(row.cells.get(c), digits) for c in columns)] for row in rows)]


def structure_grid(rows: Sequence[Row], columns: Sequence[str], digits: int = 3) -> list[list[str]]:
    """Lay rows out as `grid` does, split up into structures."""
    lines = [["method", "stage", "draws", "structure", *columns]]
    for row in rows:
        for name in dict.fromkeys(name for split in row.structures.values() for name in split):
            cells = (row.structures.get(column, {}).get(name) for column in columns)
            lines.append([*_about(row), name, *(_show(cell, digits) for cell in cells)])
    return lines


def _about(row: Row) -> list[str]:
    return [row.method, row.stage, str(len(row.draws)) if row.draws else "published"]


def _show(cell: Cell | None, digits: int) -> str:
    if cell is None:
        return ""
    mean = f"{cell.mean:.{digits}f}"
    return mean if cell.spread is None else f"{mean} ± {cell.spread:.{digits}f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Draw a grid as a Markdown table whose columns also line up on a terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(f"| {' | '.join(t.ljust(w) for t, w in zip(line, widths, strict=True))} |" for line in ruled)


def write_report(
    folder: Path,
    scores: Sequence[Score],
    configuration: Mapping[str, Any],
    notes: Sequence[str],
    *,
    published: Sequence[Row] = (),
    reference: str = REFERENCE,
) -> str:
    """Write scores, configuration, comparison and tables (JSON, Markdown, PNG); return the Dice tables to print.

    Args:
        folder: Where to.
        scores: Of all methods, draws, stages and columns.
        configuration: Goes into every file.
        notes: What a reader should know, a line each.
        published: Rows that `read_published` gave, shown below those of this run.
        reference: The method that the others are compared with.
    """
    tables = {
        title: {metric: tabulate(of_these, metric) for metric in METRICS}
        for title, of_these in (same_draws(scores) or {"": []}).items()
    }
    differences = compare(scores, reference)
    shown, further, drawn = [], [], []
    for number, (title, rows) in enumerate(tables.items()):
        everyone = [*rows["dice"], *(() if number else published)]
        named = f", {title}" if len(tables) > 1 else ""
        drawn += everyone
        table = grid(everyone, columns_of(everyone))
        parts = grid(rows["dice"], columns_of(rows["dice"], parts=True))
        shown += [f"{title.capitalize()}:"] if named else []
        shown += [markdown(lines) for lines in (table, parts) if _filled(lines)]
        further += _further_tables(rows, named)
    settings = json.dumps(configuration, indent=2)
    sections = [
        "# Dice",
        *shown,
        "\n".join(f"- {note}" for note in notes),
        *further,
        *_comparison(differences, reference),
        f"## As published\n\n{AS_PUBLISHED}",
        f"## Settings\n\n```json\n{settings}\n```",
    ]
    as_json = _as_json([*tables.values()], configuration, notes) | {
        "published": [_plain(row) for row in published],
        "comparison": [difference._asdict() for difference in differences],
    }
    write_scores(folder / "scores.csv", scores)
    _write_csv(folder / "comparison.csv", Difference._fields, (difference.as_line() for difference in differences))
    write_text(folder / "configuration.json", settings + "\n")
    write_text(folder / "table.json", json.dumps(as_json, indent=2) + "\n")
    write_text(folder / "table.md", "\n\n".join(filter(None, sections)) + "\n")
    save_figure(folder / "table.png", _table_figure(grid(drawn, columns_of(drawn))), configuration)
    return "\n\n".join(shown)


def _filled(lines: Sequence[Sequence[str]]) -> bool:
    """Whether a grid has a row and a column besides those that say what the rows are."""
    return len(lines) > 1 and len(lines[0]) > 3


def _further_tables(rows: Mapping[str, Sequence[Row]], named: str) -> list[str]:
    """Dice by structure, then every other metric, each with its title and what is `named` after it."""
    sections = []
    if rows["dice"]:
        lines = structure_grid(rows["dice"], columns_of(rows["dice"]))
        sections += [f"## {METRICS['dice'].title} per structure{named}", markdown(lines)]
    for metric, about in METRICS.items():
        grids = [grid(rows[metric], columns_of(rows[metric], parts=parts), about.digits) for parts in (False, True)]
        if metric != "dice" and rows[metric]:
            sections += [f"## {about.title}{named}", *(markdown(lines) for lines in grids if _filled(lines))]
            sections += [MISSED] if metric == "missed" else []
    return sections


def _comparison(differences: Sequence[Difference], reference: str) -> list[str]:
    if not differences:
        return []
    sections = [f"## Differences to {reference}, patient by patient", f"{ABOUT} A dash: undefined."]
    for metric in dict.fromkeys(difference.metric for difference in differences):
        lines = comparison_grid([difference for difference in differences if difference.metric == metric])
        sections += [f"### {METRICS[metric].title}", markdown(lines)]
    return sections


def _plain(row: Row) -> dict[str, Any]:
    cells: dict[str, Any] = {column: cell._asdict() | {"structures": {}} for column, cell in row.cells.items()}
    for column, split in row.structures.items():
        cell = cells.setdefault(column, {"mean": None, "spread": None})
        cell["structures"] = {name: part._asdict() for name, part in split.items()}
    return {"method": row.method, "stage": row.stage, "draws": list(row.draws), "cells": cells}


def _as_json(
    tables: Sequence[Mapping[str, Sequence[Row]]], configuration: Mapping[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    """Put the rows of all tables into one list for each metric; a row says which draws it is of."""
    rows = {metric: [row for table in tables for row in table[metric]] for metric in METRICS}
    return {
        "metric": "dice",
        "columns": [*columns_of(rows["dice"]), *columns_of(rows["dice"], parts=True)],
        "rows": [_plain(row) for row in rows["dice"]],
        "tables": {metric: [_plain(row) for row in found] for metric, found in rows.items() if metric != "dice"},
        "notes": list(notes),
        "configuration": dict(configuration),
    }


def _table_figure(lines: Sequence[Sequence[str]]) -> Figure:
    figure = Figure(figsize=(1.1 * len(lines[0]), 0.35 * len(lines)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    drawn = axes.table([*map(list, lines[1:])], colLabels=[*lines[0]], loc="center", cellLoc="center")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    drawn.scale(1, 1.4)
    drawn.auto_set_column_width([*range(len(lines[0]))])
    return figure


def curves_figure(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Draw the logged numbers of several runs over iterations, one panel for each number.

    Args:
        curves: For every run, by its name, what was logged; each line holds "iteration" and numbers by name.
    """
    names = [
        *dict.fromkeys(name for lines in curves.values() for line in lines for name in line if name != "iteration")
    ]
    across = min(4, max(1, len(names)))
    down = -(-len(names) // across) or 1
    figure = Figure(figsize=(3.4 * across, 2.6 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.remove()
    looks = [*product(("-", "--", ":", "-."), (f"C{number}" for number in range(10)))]
    for axes, name in zip(panels, names, strict=False):
        for (dash, colour), (run, lines) in zip(cycle(looks), curves.items(), strict=False):
            points = [(line["iteration"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, label=run)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlabel("iteration", fontsize=8)
    if names:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    return figure


def save_figure(path: Path, figure: Figure, configuration: Mapping[str, Any]) -> None:
    """Save a figure with the configuration in a footer and, whole, in the file's metadata."""
    footer = ", ".join(
        f"{name} {value}" for name, value in configuration.items() if isinstance(value, str | int | float)
    )
    figure.text(0.5, -0.03, footer, ha="center", va="top", fontsize=6, color="grey", wrap=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight", metadata={"Description": json.dumps(configuration)})
