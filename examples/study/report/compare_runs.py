"""Compare what several runs of the studies have trained, whatever settings they differ in.

Prints the Dice of all their methods, in a table for each set of draws, and how each method differs from a reference,
case by case. A folder of results is as good as one of a run: only the scores in it are read. With `--output`, the
files that a run makes of its scores are made of these, from one run or several.

    python examples/compare_runs.py runs/unet runs/unet-fine-code
    python examples/compare_runs.py runs/long runs/short --reference cooperative
    python examples/compare_runs.py benchmarks/results/cardiac_cpu/unet --output runs/unet-again
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.data.frame import DataError
from study.domains import domain_of
from study.methods import METHODS
from study.methods.augmentations import NONE
from study.report.comparison import REFERENCES, compare, comparison_grid, reference_of
from study.report.conclusion import costs_of, notes_on
from study.report.summary import ABOUT, summary_grid
from study.report.tables import columns_of, grid, markdown, same_draws, tabulate
from study.report.written import write_report
from study.run.outputs import done_in, read_json
from study.run.scores import FILE, Score, read_scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help=f"folders with a {FILE}")
    about = f"what others are compared with (default: {', else '.join(REFERENCES)})"
    parser.add_argument("--reference", metavar="METHOD", help=about)
    about = "write table.md, table.json, table.png and comparison.csv there"
    parser.add_argument("--output", type=Path, metavar="DIR", help=about)
    about = "print a line for each method too: cost, shifts, total failures, HD95, calibration"
    parser.add_argument("--summary", action="store_true", help=about)
    options = parser.parse_args(arguments)
    try:
        scores = together(options.runs)
        reference = options.reference or reference_of(scores)
        is_there = reference in {score.method for score in scores}
        if options.reference is not None and not is_there:
            raise DataError(
                f"--reference {reference}: no run has it; they have "
                f"{', '.join(dict.fromkeys(score.method for score in scores))}. Name one of these."
            )
        costs = costs_of_all(options.runs)
        if options.output is not None:
            write(options.output, options.runs, scores, reference)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for title, of_these in same_draws(scores).items():
        rows = tabulate(of_these)
        print(f"Dice, {title}:\n\n{markdown(grid(rows, columns_of(rows), costs=costs))}\n")
        if options.summary:
            print(f"{markdown(summary_grid(of_these, costs))}\n\n{ABOUT}\n")
    if not is_there:
        names = ", ".join(dict.fromkeys(score.method for score in scores))
        print(f"No differences: there is neither {' nor '.join(REFERENCES)} among {names}. Name one by --reference.")
        return 0
    print(f"Less that of {reference} on the same draws:\n")
    differences = [one for one in compare(scores, reference) if one.metric == "dice"]
    print(markdown(comparison_grid(differences)))
    return 0


def together(runs: Sequence[Path], file: str = FILE) -> list[Score]:
    """Read the scores of all runs, and put them together as `joined` does.

    Args:
        runs: Their folders.
        file: Which scores: `FILE`, of the tests, or `VALIDATION`.

    Raises:
        DataError: a file cannot be read, or two runs have the same method and draw.
    """
    return joined([(run, scores_of(run, file)) for run in runs])


def scores_of(run: Path, file: str = FILE) -> list[Score]:
    """Read the scores of one run.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return read_scores(run, file)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Pass a folder of a run.") from None


def joined(runs: Sequence[tuple[Path, Sequence[Score]]]) -> list[Score]:
    """Return the scores of all runs; where runs differ in what `additions` knows of, methods are called by it too.

    Raises:
        DataError: two runs have the same method and draw, or are of different kinds of images.
    """
    scores: list[Score] = []
    there: dict[tuple[str, int], Path] = {}
    called = additions([run for run, _ in runs])
    kinds = {run: domain_of(score.column for score in its_own).name for run, its_own in runs if its_own}
    if len({*kinds.values()}) > 1:
        listed = "; ".join(f"{run} is of {kind}" for run, kind in kinds.items())
        raise DataError(f"{listed}. Compare each kind of images by itself.")
    for run, its_own in runs:
        some = [score._replace(method=score.method + called[run]) for score in its_own]
        for method, draw in dict.fromkeys((score.method, score.draw) for score in some):
            if (method, draw) in there:
                raise DataError(
                    f"{run}: has {method}, draw {draw}, as {there[method, draw]} has. Leave one of them out."
                )
            there[method, draw] = run
        scores += some
    return scores


def additions(runs: Sequence[Path]) -> dict[Path, str]:
    """Return what the methods of each run are called by, beside their names, where runs differ in it."""
    settings = {run: settings_of(run) for run in runs}
    augmentations = {run: str(found.get("augment", NONE)) for run, found in settings.items()}
    words = [
        {run: f" + {name}" if name != NONE else "" for run, name in augmentations.items()},
        {run: f", {found['train_size']} images" if "train_size" in found else "" for run, found in settings.items()},
        {run: ", fine-tuned" if found.get("start") else "" for run, found in settings.items()},
        {run: ", equal time" if found.get("equal_time") else "" for run, found in settings.items()},
    ]
    differing = [these for these in words if len({*these.values()}) > 1]
    return {run: "".join(these[run] for these in differing) for run in runs}


def settings_of(run: Path) -> dict[str, Any]:
    """Return a run's settings, none of a folder that has but scores."""
    file = run / "configuration.json"
    return read_json(file) if file.exists() else {}


def costs_of_all(runs: Sequence[Path]) -> dict[str, float]:
    """Return what a training step of each method costs in plain steps, methods called as in `together`."""
    called = additions(runs)
    done = [(name + called[run], about) for run in runs for name, _, about in done_in(run, METHODS)]
    return costs_of(done)


def write(folder: Path, runs: Sequence[Path], scores: Sequence[Score], reference: str) -> None:
    """Write what a run makes of its scores: its settings are those of the only run, or of each run by its folder."""
    if any(folder.resolve() == run.resolve() for run in runs):
        raise DataError(f"--output {folder}: the scores are read from there. Pass another folder.")
    settings = {str(run): read_json(file) for run in runs if (file := run / "configuration.json").exists()}
    configuration: dict[str, Any] = settings[str(runs[0])] if len(runs) == len(settings) == 1 else settings
    notes = dict.fromkeys(note for run in runs for note in notes_on(done_in(run, METHODS)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_report(folder, scores, configuration, [*notes], reference=reference, costs=costs_of_all(runs))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to ({error.strerror}). Pass another --output.") from None
