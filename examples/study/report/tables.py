"""Tables of scores: what is in them, and how they are laid out as text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from study.run.scores import AVERAGE, PART, Score, column_mean

COST = "cost in plain steps"


class Cell(NamedTuple):
    """One cell of a table: mean over draws, and their standard deviation where there are at least two."""

    mean: float
    spread: float | None


class Row(NamedTuple):
    """One row of a table; `structures` splits `cells` up. Published numbers have no draws and no structures."""

    method: str
    stage: str
    draws: tuple[int, ...]
    cells: dict[str, Cell]
    structures: dict[str, dict[str, Cell]]


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


def grid(
    rows: Sequence[Row], columns: Sequence[str], digits: int = 3, *, costs: Mapping[str, float] | None = None
) -> list[list[str]]:
    """Lay rows out as text, headings first; a cell that a row lacks stays empty.

    Args:
        rows: What `tabulate` gives.
        columns: Which of their cells.
        digits: After the point.
        costs: What a training step of a method costs in plain steps; a column of its own, unless there are none.
    """
    lines = [["method", "stage", "draws", *([COST] if costs else []), *columns]]
    for row in rows:
        cost = [f"{costs[row.method]:.2f}" if row.method in costs else ""] if costs else []
        lines.append([*_about(row), *cost, *(_show(row.cells.get(column), digits) for column in columns)])
    return lines


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


def summarise(values: Iterable[float]) -> Cell:
    """Return mean and spread (sample standard deviation) over draws."""
    values = list(values)
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None)
