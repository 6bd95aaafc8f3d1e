"""The end of a run: everything that can be said of what its folder holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from study.methods import METHODS
from study.report.summary import ABOUT, summary_grid
from study.report.tables import Row, markdown, same_draws
from study.report.written import curves_figure, write_report
from study.run.files import save_figure, write_text
from study.run.outputs import Finished, Outputs
from study.run.scores import FILE, VALIDATION, write_scores
from study.run.validation import VALIDATED, in_words


def conclude(
    outputs: Outputs,
    published: Sequence[Row] = (),
    *,
    summary: bool = False,
    page: Callable[[Outputs, Sequence[Finished], Sequence[str]], Path] | None = None,
) -> None:
    """Write scores, tables, curves and the page of every training that is done in a folder, and print the table.

    Args:
        outputs: The folder and its configuration.
        published: Rows of the table that no run made.
        summary: Whether to write and print a line for each method, as `summary_grid` does, too.
        page: Writes the page, given the folder, the trainings and notes, and returns its file.
    """
    finished = [training._replace(log=trained_alone(training)) for training in outputs.finished(METHODS)]
    scores = [score for training in finished for score in training.scores]
    notes = notes_on((training.method, training.draw, training.about) for training in finished)
    if outputs.configuration["preset"] == "quick":
        notes.append("The quick preset is too short to rank methods on real data: it shows that everything works.")
    if outputs.configuration.get("equal_time"):
        notes.append("Equal time: every training took about as long as the network alone takes for its iterations.")
    costs = costs_of((training.method, training.about) for training in finished)
    table = write_report(outputs.folder, scores, outputs.configuration, notes, published=published, costs=costs)
    if validated := [score for training in finished for score in training.validated]:
        write_scores(outputs.folder, validated, VALIDATION)
    curves = {f"{training.method}, draw {training.draw}": training.log for training in finished}
    save_figure(outputs.folder / "curves.png", curves_figure(curves), outputs.configuration)
    if summary:
        lines = [markdown(summary_grid(these, costs)) for these in same_draws(scores).values()]
        write_text(outputs.folder / "summary.md", "\n\n".join([*lines, ABOUT]) + "\n")
        print("", *lines, ABOUT, sep="\n\n")
    at = page and page(outputs, finished, notes)
    print(f"\nDice, mean and spread over draws\n\n{table}\n", *notes, sep="\n")
    print()
    if at:
        print(f"The run as one page: {at}")
    print(f"Results: {outputs.folder / 'table.md'}; beside it {FILE}, figures, and a folder for each method")


def notes_on(trainings: Iterable[tuple[str, int, Mapping[str, Any]]]) -> list[str]:
    """Say what a reader of the results should know about the trainings, a line each and none twice."""
    notes: list[str] = []
    for name, draw, about in trainings:
        took = f"{name}, draw {draw}: {about['iterations']} iterations in {about['seconds']} s"
        if "iterations of plain" in about:
            took += f", which is the time of {about['iterations of plain']} plain ones"
        took += f"; each costs {about['cost']:.2f} plain steps." if "cost" in about else "."
        if VALIDATED in about:
            took += f" {in_words(about[VALIDATED])}"
        notes += [*about["notes"], METHODS[name].describe(name), took]
    return list(dict.fromkeys(notes))


def costs_of(trainings: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Return what a step of each method costs, in steps of the network alone: the mean over its trainings that say."""
    found: dict[str, list[float]] = {}
    for name, about in trainings:
        if "cost" in about:
            found.setdefault(name, []).append(about["cost"])
    return {name: fmean(costs) for name, costs in found.items()}


def trained_alone(training: Finished) -> list[dict[str, float]]:
    """Return the log without the numbers of heads that the method leaves untrained."""
    untrained = METHODS[training.method].untrained
    return [
        {name: value for name, value in line.items() if not any(word in name for word in untrained)}
        for line in training.log
    ]
