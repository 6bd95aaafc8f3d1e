"""Compare what several runs of the cardiac example have trained, whatever settings they differ in.

Prints the Dice of all their methods, in a table for each set of draws, and how each method differs from a reference,
patient by patient. A folder of results is as good as one of a run; only its `scores.csv` is read.

    python examples/compare_runs.py runs/unet runs/unet-fine-code
    python examples/compare_runs.py runs/long runs/short --reference cooperative
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cardiac.data.readers import DataError
from cardiac.report.comparison import REFERENCES, compare, comparison_grid, reference_of
from cardiac.report.tables import columns_of, grid, markdown, same_draws, tabulate
from cardiac.run.scores import Score, read_scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders with a scores.csv")
    about = f"what others are compared with (default: {', else '.join(REFERENCES)})"
    parser.add_argument("--reference", metavar="METHOD", help=about)
    options = parser.parse_args(arguments)
    try:
        scores = together(options.runs)
        reference = options.reference or reference_of(scores)
        if reference not in {score.method for score in scores}:
            raise DataError(
                f"--reference {reference}: no run has it; they have "
                f"{', '.join(dict.fromkeys(score.method for score in scores))}. Name one of these."
            )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for title, of_these in same_draws(scores).items():
        rows = tabulate(of_these)
        print(f"Dice, {title}:\n\n{markdown(grid(rows, columns_of(rows)))}\n")
    print(f"Less that of {reference} on the same draws:\n")
    print(markdown(comparison_grid(one for one in compare(scores, reference) if one.metric == "dice")))
    return 0


def together(runs: Sequence[Path]) -> list[Score]:
    """Read the scores of all runs.

    Raises:
        DataError: a file cannot be read, or two runs have the same method and draw.
    """
    scores: list[Score] = []
    there: dict[tuple[str, int], Path] = {}
    for run in runs:
        try:
            some = read_scores(run / "scores.csv")
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Pass a folder of a run.") from None
        for method, draw in dict.fromkeys((score.method, score.draw) for score in some):
            if (method, draw) in there:
                raise DataError(
                    f"{run}: has {method}, draw {draw}, as {there[method, draw]} has. Leave one of them out."
                )
            there[method, draw] = run
        scores += some
    return scores


if __name__ == "__main__":
    sys.exit(main())
