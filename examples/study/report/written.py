"""What a run's tables are written to: Markdown, JSON, CSV and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from study.domains import CARDIAC, Domain, domain_of
from study.report.comparison import Difference, about, compare, comparison_grid, reference_of
from study.report.tables import COST, Row, columns_of, grid, markdown, same_draws, structure_grid, tabulate
from study.run.files import save_figure, write_csv, write_text
from study.run.scores import LEAST, METRICS, Score, write_scores

MISSED = (
    "The share of volumes in which either the prediction or the label lacks a structure. There HD95 and ASSD are "
    "undefined: they are means over the other volumes. A structure that is in neither is left out of everything."
)
EXPLAINED = {
    "missed": MISSED,
    "failed": f"The share of cases with a Dice below {LEAST}.",
    "ece": "How far the certainty of pixels is from the share of right ones among them, the mean over cases.",
    "confidence": "What the network's own probabilities say of the Dice of its prediction, the mean over cases.",
}
ALWAYS = ("hd95", "assd", "missed")
"""Metrics of which there is a table in `table.json`, even if it is empty."""
AS_PUBLISHED = (
    "The one published figure that could be verified is the summary in the paper's abstract, trained on 10 patients: "
    "15 % better average Dice than standard training. The cells of its tables are not copied here; `--published "
    "FILE.csv`, with the columns method, stage, column and value, adds rows of your own."
)


def write_report(
    folder: Path,
    scores: Sequence[Score],
    configuration: Mapping[str, Any],
    notes: Sequence[str],
    *,
    published: Sequence[Row] = (),
    reference: str | None = None,
    costs: Mapping[str, float] | None = None,
) -> str:
    """Write scores, configuration, comparison and tables (JSON, Markdown, PNG); return the Dice tables to print.

    Args:
        folder: Where to.
        scores: Of all methods, draws, stages and columns.
        configuration: Goes into every file.
        notes: What a reader should know, a line each.
        published: Rows that `read_published` gave, shown below those of this run.
        reference: The method that the others are compared with; `reference_of` the scores if None.
        costs: What a training step of each method costs in plain steps, where it was measured.
    """
    domain = domain_of(score.column for score in scores)
    tables = {
        title: {metric: tabulate(of_these, metric) for metric in METRICS}
        for title, of_these in (same_draws(scores) or {"": []}).items()
    }
    reference = reference or reference_of(scores)
    differences = compare(scores, reference)
    shown, further, drawn = [], [], []
    for number, (title, rows) in enumerate(tables.items()):
        everyone = [*rows["dice"], *(() if number else published)]
        named = f", {title}" if len(tables) > 1 else ""
        drawn += everyone
        table = grid(everyone, columns_of(everyone), costs=costs)
        parts = grid(rows["dice"], columns_of(rows["dice"], parts=True))
        shown += [f"{title.capitalize()}:"] if named else []
        shown += [markdown(lines) for lines in (table, parts) if _filled(lines)]
        further += _further_tables(rows, named, domain)
    settings = json.dumps(configuration, indent=2)
    sections = [
        "# Dice",
        *shown,
        "\n".join(f"- {note}" for note in notes),
        *further,
        *_comparison(differences, reference, domain),
        *([f"## As published\n\n{AS_PUBLISHED}"] if domain is CARDIAC else []),
        f"## Settings\n\n```json\n{settings}\n```",
    ]
    as_json = _as_json([*tables.values()], configuration, notes) | {
        **({COST: dict(costs)} if costs else {}),
        "published": [_plain(row) for row in published],
        "comparison": [difference._asdict() for difference in differences],
    }
    write_scores(folder, scores)
    write_csv(folder / "comparison.csv", Difference._fields, (difference.as_line() for difference in differences))
    write_text(folder / "configuration.json", settings + "\n")
    write_text(folder / "table.json", json.dumps(as_json, indent=2) + "\n")
    write_text(folder / "table.md", "\n\n".join(filter(None, sections)) + "\n")
    save_figure(folder / "table.png", _table_figure(grid(drawn, columns_of(drawn), costs=costs)), configuration)
    return "\n\n".join(shown)


def _title(metric: str, domain: Domain) -> str:
    return domain.titles.get(metric, METRICS[metric].title)


def _filled(lines: Sequence[Sequence[str]]) -> bool:
    """Whether a grid has a row and a column besides those that say what the rows are."""
    return len(lines) > 1 and len(lines[0]) > 3


def _further_tables(rows: Mapping[str, Sequence[Row]], named: str, domain: Domain) -> list[str]:
    """Dice by structure, then every other metric, each with its title and what is `named` after it."""
    sections = []
    if rows["dice"] and domain.several:
        lines = structure_grid(rows["dice"], columns_of(rows["dice"]))
        sections += [f"## {_title('dice', domain)} per structure{named}", markdown(lines)]
    for metric, (_, digits, _) in METRICS.items():
        grids = [grid(rows[metric], columns_of(rows[metric], parts=parts), digits) for parts in (False, True)]
        if metric != "dice" and rows[metric]:
            sections += [f"## {_title(metric, domain)}{named}", *(markdown(lines) for lines in grids if _filled(lines))]
            sections += [EXPLAINED[metric]] if metric in EXPLAINED else []
    return sections


def _comparison(differences: Sequence[Difference], reference: str, domain: Domain) -> list[str]:
    if not differences:
        return []
    sections = [f"## Differences to {reference}, {domain.case} by {domain.case}", f"{about(domain)} A dash: undefined."]
    for metric in dict.fromkeys(difference.metric for difference in differences):
        lines = comparison_grid([difference for difference in differences if difference.metric == metric])
        sections += [f"### {_title(metric, domain)}", markdown(lines)]
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
        "tables": {
            metric: [_plain(row) for row in found]
            for metric, found in rows.items()
            if metric in ALWAYS or (found and metric != "dice")
        },
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
