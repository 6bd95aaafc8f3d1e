"""A run as one page: everything that its folder holds, in a single HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import jinja2
from markupsafe import Markup

from study.domains import Domain, domain_of
from study.methods import METHODS
from study.report.comparison import about, compare, reference_of
from study.report.conclusion import costs_of
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
from study.report.summary import MEANINGS, MEANS, SHIFTS, SIDE, summary_grid
from study.report.tables import same_draws, tabulate
from study.run import cases, moments
from study.run.cases import Case
from study.run.files import replacing
from study.run.outputs import Finished, Outputs
from study.run.scores import METRICS, Score

PAGE = "report.html"
TEMPLATE = "study/report/page.html"
"""Below `examples/`, as are those that extend it."""

FURTHER = ("failed", "ece", "confidence")
"""Metrics without which there is no summary."""

Kept = TypeVar("Kept")


def write_page(
    outputs: Outputs,
    runs: Sequence[Finished],
    notes: Sequence[str],
    *,
    template: str = TEMPLATE,
    across: int = 4,
    **own: Any,
) -> Path:
    """Write `report.html` from what the output folder keeps, whole or not at all; return its path.

    What a training did not keep, as it was run before that was kept, is named in a note in its section.

    Args:
        outputs: The folder and its configuration.
        runs: What `Outputs.finished` gives.
        notes: What a reader of the results should know.
        template: Of the page; a study's own extends `TEMPLATE`.
        across: How many cases lie side by side.
        own: What else that template shows.
    """
    of_all = [score for run in runs for score in run.scores]
    scores = [score for score in of_all if score.metric == "dice"]
    domain, reference = domain_of(score.column for score in scores), reference_of(scores)
    differences = compare(scores, reference)
    tables = [(title, tabulate(part), compare(part, reference)) for title, part in same_draws(scores).items()]
    colours = colours_of(runs)
    loader = jinja2.FileSystemLoader(Path(__file__).parents[2])
    page = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = page.get_template(template).render(
        domain=domain,
        headline=headline(*tables[0][1:], reference) if tables else headline([], [], reference),
        quick=outputs.configuration["preset"] == "quick",
        methods=colours,
        draws=[*zip(sorted({run.draw for run in runs}), ("solid", "dashed", "dotted"), strict=False)],
        structures=[*dict.fromkeys(score.structure for score in scores)],
        label=LABEL,
        prediction=PREDICTION,
        reference=reference,
        tables=[(title, dice_table(rows, gains)) for title, rows, gains in tables],
        tables_of_parts=[(title, dice_table(rows, gains, parts=True)) for title, rows, gains in tables],
        summary=_summary(of_all, runs, domain),
        about_summary=MEANS,
        meanings=MEANINGS,
        equal_time=_equal_time(runs),
        differences=difference_table(differences),
        differences_of_parts=difference_table(differences, parts=True),
        forests=forests(differences, colours, reference),
        about_differences=about(domain),
        curves=_curves(runs, colours),
        cases=_cases(outputs, runs, domain),
        across=across,
        moments=_moments(outputs, runs),
        configuration=_flat(outputs.configuration),
        about=[(f"{run.method}, draw {run.draw}", _about(run, domain)) for run in runs],
        notes=notes,
        **own,
    )
    with replacing(outputs.folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return outputs.folder / PAGE


def colours_of(runs: Iterable[Finished]) -> dict[str, str]:
    """Give every method of some trainings a colour, the same wherever it is drawn."""
    return hues([*dict.fromkeys(run.method for run in runs)])


def kept_by(
    outputs: Outputs, runs: Sequence[Finished], read: Callable[[Path], Sequence[Kept]]
) -> tuple[list[tuple[Finished, Sequence[Kept]]], list[str]]:
    """Read what every training kept in its folder; name those that kept nothing that can be read."""
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


# The summary ----------------------------------------------------------------------------------------------------------


def _summary(
    scores: Sequence[Score], runs: Sequence[Finished], domain: Domain
) -> list[tuple[str, list[tuple[str, int]], list[list[str]]]]:
    """Return a table for each set of draws, if failures and calibration were scored; without single shifts.

    A table is its title; headings, each with how many columns it spans; and lines, of which the first is headings too.
    """
    if not any(score.metric in FURTHER for score in scores):
        return []
    costs = costs_of((run.method, run.about) for run in runs)
    hd95 = domain.titles.get("hd95", METRICS["hd95"].title)
    tables = []
    for title, these in same_draws(scores).items():
        head, *lines = summary_grid(these, costs)
        dice = [head.index(name) for name in (domain.clean, SHIFTS)]
        shown = [*range(dice[0]), *dice, *(at for at, name in enumerate(head) if SIDE in name)]
        over = ["Dice" if at in dice else head[at].rpartition(SIDE)[0].replace("HD95", hd95) for at in shown]
        spans = [(what, len([*these])) for what, these in groupby(over)]
        head = [name.rpartition(SIDE)[2] for name in head]
        tables.append((title, spans, [[line[at] for at in shown] for line in (head, *lines)]))
    return tables


def _equal_time(runs: Sequence[Finished]) -> list[tuple[str, str]]:
    """Return how many iterations each method took, by draw, if all took about the same time."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        if "iterations of plain" in run.about:
            said = f"{run.about['iterations']} in place of {run.about['iterations of plain']}"
            found.setdefault(run.method, {})[said] = None
    return [(method, ", ".join(counts)) for method, counts in found.items()]


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


def _cases(outputs: Outputs, runs: Sequence[Finished], domain: Domain) -> dict[str, Any]:
    """Draw worst and best frames by draw, column and method."""
    kept, missing = kept_by(outputs, runs, lambda place: cases.read_cases(place / cases.CASES))
    draws: dict[int, dict[str, list[tuple[Finished, list[tuple[str, Case, Markup]]]]]] = {}
    for run, found in kept:
        for column, group in groupby(found, key=lambda case: case.column):
            ordered = [*group]  # from worst to best
            half = len(ordered) // 2
            ranks = ["worst"] * half + ["best"] * (len(ordered) - half) if half else [f"only {domain.frame}"]
            shown = [(rank, case, case_picture(case, domain)) for rank, case in zip(ranks, ordered, strict=True)]
            draws.setdefault(run.draw, {}).setdefault(column, []).append((run, shown))
    return {"draws": dict(sorted(draws.items())), "missing": missing}


def _moments(outputs: Outputs, runs: Sequence[Finished]) -> dict[str, Any]:
    """Draw the hard examples by draw and method, moment by moment, of the methods that can make them."""
    runs = [run for run in runs if METHODS[run.method].reconstructs]
    kept, missing = kept_by(outputs, runs, lambda place: moments.read_moments(place / moments.FOLDER))
    draws: dict[int, list[tuple[Finished, Markup, list[tuple[int, str, Markup]]]]] = {}
    for run, found in kept:
        shown = [(m.iteration, f"{m.iteration / run.about['iterations']:.0%}", moment_picture(m)) for m in found]
        draws.setdefault(run.draw, []).append((run, slices_picture(found[0]), shown))
    return {"draws": dict(sorted(draws.items())), "missing": missing}


# Small helpers --------------------------------------------------------------------------------------------------------


def _about(run: Finished, domain: Domain) -> list[tuple[str, str]]:
    """List what there is to know of a training, but for its notes."""
    facts = _flat({**run.about, "notes": None})
    return [(name.replace("patients", f"{domain.case}s"), value) for name, value in facts]


def _flat(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List settings by name, those inside others with both names; what is None is left out."""
    flat = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat += [(f"{name}: {inner}", shown) for inner, shown in _flat(value)]
        elif value is not None:
            flat.append((name.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value)))
    return flat
