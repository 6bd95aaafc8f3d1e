"""What a page says about the result: a headline, tables of Dice and of differences, and these as forest plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from study.domains import Domain, domain_of
from study.report.comparison import SHIFTED, Difference
from study.report.figures import Span, forest
from study.report.tables import Row, columns_of
from study.run.scores import AVERAGE, PART


class Entry(NamedTuple):
    """One cell of the table: its text, by how many points it leads the reference, and whether it leads its column."""

    text: str
    difference: str
    best: bool


class Gain(NamedTuple):
    """A difference in words; in points, which are hundredths of Dice."""

    points: str
    interval: str
    p: str
    draws: str
    clear: bool


def headline(rows: Sequence[Row], differences: Sequence[Difference], reference: str) -> list[str]:
    """Say which method has the best average, and how it, or the next one, compares with the reference.

    Only a `clear` difference is called one.

    Args:
        rows: What `tabulate` gives.
        differences: What `compare` gives.
        reference: The method that others are compared with.
    """
    if not rows:
        return ["Nothing is scored yet."]
    best = max(rows, key=_average)
    said = f"The best average Dice is {_average(best):.3f}, by {best.method} ({best.stage})"
    domain = domain_of(row_column for row in rows for row_column in row.cells)
    headlines = {SHIFTED: f"the shifted columns (all but {domain.clean})", domain.clean: domain.clean}
    compared = {(found.method, found.column): found for found in differences if found.stage == best.stage}
    others = [row for row in rows if row.stage == best.stage and row.method != reference]
    method = best.method if best.method != reference else max(others, key=_average, default=best).method
    found = {words: compared.get((method, column)) for column, words in headlines.items()}
    sentences = [_sentence(difference, words, domain) for words, difference in found.items() if difference is not None]
    return (
        [f"{said}.", *sentences]
        if sentences
        else [f"{said}; at this stage no method can be compared with {reference}."]
    )


def dice_table(
    rows: Sequence[Row], differences: Sequence[Difference], *, parts: bool = False
) -> tuple[list[str], list[tuple[Row, list[Entry]]]]:
    """Return a table's columns, and for every row its cells; with `parts` those for parts of columns."""
    columns = columns_of(rows, parts=parts)
    best = {column: max(row.cells[column].mean for row in rows if column in row.cells) for column in columns}
    gains = {(found.method, found.stage, found.column): gain(found).points for found in differences}
    filled = []
    for row in rows:
        entries = []
        for column in columns:
            cell = row.cells.get(column)
            text = "" if cell is None else f"{cell.mean:.3f}" + ("" if cell.spread is None else f" ± {cell.spread:.3f}")
            is_best = cell is not None and cell.mean == best[column] and len(rows) > 1
            entries.append(Entry(text, gains.get((row.method, row.stage, column), ""), is_best))
        filled.append((row, entries))
    return columns, filled


def difference_table(
    differences: Sequence[Difference], *, parts: bool = False
) -> tuple[list[str], list[tuple[str, str, list[Gain | None]]]]:
    """Return a table's columns, and for every method and stage its differences; with `parts` those of parts."""
    columns = [*dict.fromkeys(found.column for found in differences if (PART in found.column) == parts)]
    rows: dict[tuple[str, str], dict[str, Gain]] = {}
    for found in differences:
        rows.setdefault((found.method, found.stage), {})[found.column] = gain(found)
    filled = [(method, stage, [gains.get(c) for c in columns]) for (method, stage), gains in rows.items()]
    return columns, filled


def forests(differences: Sequence[Difference], colours: Mapping[str, str], reference: str) -> list[Markup]:
    """Draw the differences of every method at its last stage, in points, all on one scale."""
    last = {found.method: found.stage for found in differences}
    spans: dict[str, list[Span]] = {method: [] for method in last}
    for found in differences:
        if found.stage == last[found.method] and PART not in found.column:
            low, high = (found.mean if end is None else end for end in (found.low, found.high))
            spans[found.method].append(Span(found.column, 100 * found.mean, 100 * low, 100 * high))
    ends = [0.0, *(end for of_method in spans.values() for span in of_method for end in span[1:])]
    margin = 0.04 * (max(ends) - min(ends)) or 1.0
    limits = min(ends) - margin, max(ends) + margin
    xlabel = f"points ahead of {reference}"
    return [
        forest(f"{method} ({last[method]})", of_method, colours[method], xlabel=xlabel, limits=limits)
        for method, of_method in spans.items()
    ]


def gain(found: Difference) -> Gain:
    """Put a difference into words.

    Example:
        >>> gain(Difference("a", "b", "FTN", "ACDC", "dice", 9, 0.021, 0.004, 0.04, 0.0312, {0: 0.03, 1: -0.01}, 1))
        Gain(points='+2.1', interval='+0.4 to +4.0', p='p = 0.031', draws='1 of 2 draws', clear=True)
    """
    return Gain(
        _signed(found.mean),
        "no interval" if found.low is None or found.high is None else f"{_signed(found.low)} to {_signed(found.high)}",
        "no p" if found.p is None else "p < 0.001" if found.p < 0.001 else f"p = {found.p:.2g}",
        f"{found.better} of {len(found.draws)} draws",
        found.clear,
    )


def _sentence(found: Difference, words: str, domain: Domain) -> str:
    said = gain(found)
    verdict = f"there is no clear difference between {found.method} and {found.reference}"
    details = [f"{said.points} points"]
    if found.clear:
        side = "ahead of" if found.mean > 0 else "behind"
        verdict, details = f"{found.method} is {abs(100 * found.mean):.1f} points {side} {found.reference}", []
    interval = said.interval if found.low is None else f"95 % interval {said.interval}"
    patients = f"{found.patients} {domain.case}{'s' * (found.patients > 1)}"
    return f"On {words}, {verdict} ({', '.join([*details, interval, said.p, patients, f'better in {said.draws}'])})."


def _average(row: Row) -> float:
    return row.cells[AVERAGE].mean


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
