"""What a run leaves behind: scores, the table in four forms, and figures, each written whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from .metrics import PART, Cell, Score, column_mean, summarise

AVERAGE = "average"


class Row(NamedTuple):
    """One row of the table; `structures` splits `cells` up."""

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
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Score._fields)
        writer.writerows(scores)


def read_scores(path: Path) -> list[Score]:
    """Read what `write_scores` wrote."""
    with path.open(newline="") as file:
        return [
            Score(**{**line, "draw": int(line["draw"]), "value": float(line["value"])}) for line in csv.DictReader(file)
        ]


def tabulate(scores: Iterable[Score]) -> list[Row]:
    """Turn scores into rows, one for every method and stage, in the order in which they come.

    A cell is the mean over structures of what `column_mean` gives, then mean and spread over draws; the average is
    taken over columns within a draw, parts of columns left out.
    """
    groups: dict[tuple[str, str], dict[int, dict[str, list[Score]]]] = {}
    for score in scores:
        draws = groups.setdefault((score.method, score.stage), {})
        draws.setdefault(score.draw, {}).setdefault(score.column, []).append(score)
    return [_row(method, stage, draws) for (method, stage), draws in groups.items()]


def _row(method: str, stage: str, draws: Mapping[int, Mapping[str, Sequence[Score]]]) -> Row:
    cells: dict[str, list[float]] = defaultdict(list)
    structures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for columns in draws.values():
        means = {column: column_mean(scores) for column, scores in columns.items()}
        for column, per_structure in means.items():
            cells[column].append(fmean(per_structure.values()))
            for structure, value in per_structure.items():
                structures[column][structure].append(value)
        cells[AVERAGE].append(fmean(fmean(mean.values()) for column, mean in means.items() if PART not in column))
    return Row(
        method,
        stage,
        tuple(sorted(draws)),
        {column: summarise(values) for column, values in cells.items()},
        {column: {name: summarise(v) for name, v in split.items()} for column, split in structures.items()},
    )


def columns_of(rows: Sequence[Row], *, parts: bool = False) -> list[str]:
    """Return the table's columns, the average last; with `parts` those of the second table, parts of columns."""
    found = dict.fromkeys(column for row in rows for column in row.cells if column != AVERAGE)
    return [c for c in found if PART in c] if parts else [*(c for c in found if PART not in c), AVERAGE]


def grid(rows: Sequence[Row], columns: Sequence[str]) -> list[list[str]]:
    """Lay rows out as text, headings first; a cell that a row lacks stays empty."""
    head = ["method", "stage", "draws", *columns]
    lines = [[row.method, row.stage, str(len(row.draws)), *(_show(row.cells.get(c)) for c in columns)] for row in rows]
    return [head, *lines]


def _show(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell.mean:.3f}" if cell.spread is None else f"{cell.mean:.3f} ± {cell.spread:.3f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Draw a grid as a Markdown table whose columns also line up on a terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(f"| {' | '.join(t.ljust(w) for t, w in zip(line, widths, strict=True))} |" for line in ruled)


def write_report(folder: Path, scores: Sequence[Score], configuration: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Write scores, configuration and the table as JSON, Markdown and PNG; return the table for the terminal."""
    rows = tabulate(scores)
    table, parts = grid(rows, columns_of(rows)), grid(rows, columns_of(rows, parts=True))
    shown = [markdown(each) for each in (table, parts) if len(each[0]) > 3]
    settings = json.dumps(configuration, indent=2)
    details = [f"- {note}" for note in notes]
    write_scores(folder / "scores.csv", scores)
    write_text(folder / "configuration.json", settings + "\n")
    write_text(folder / "table.json", json.dumps(_as_json(rows, configuration, notes), indent=2) + "\n")
    parts_of_page = ["# Dice", *shown, "\n".join(details), f"```json\n{settings}\n```"]
    write_text(folder / "table.md", "\n\n".join(filter(None, parts_of_page)) + "\n")
    save_figure(folder / "table.png", _table_figure(table), configuration)
    return "\n\n".join(shown)


def _as_json(rows: Sequence[Row], configuration: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    def plain(row: Row) -> dict[str, Any]:
        cells = {column: {**cell._asdict(), "structures": {}} for column, cell in row.cells.items()}
        for column, split in row.structures.items():
            cells[column]["structures"] = {name: cell._asdict() for name, cell in split.items()}
        return {"method": row.method, "stage": row.stage, "draws": list(row.draws), "cells": cells}

    columns = [*columns_of(rows), *columns_of(rows, parts=True)]
    return {
        "metric": "dice",
        "columns": columns,
        "rows": [plain(row) for row in rows],
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
    for axes, name in zip(panels, names, strict=False):
        for colour, (run, lines) in enumerate(curves.items()):
            points = [(line["iteration"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), color=f"C{colour % 10}", label=run)
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
