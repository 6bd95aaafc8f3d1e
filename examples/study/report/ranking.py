"""See whether validation ranks what several runs of the studies have trained as the tests do.

Prints the Dice of each recipe, which is a method with its augmentation: of the patients to choose by, as they are and
under shifts that no test has, and the average of the tests' shifts. Then Spearman's rank correlation of the last two.
All are of the network alone. It reports: nothing is chosen here.

    python examples/rank_recipes.py runs/none runs/gin runs/strong
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from study.data.frame import DataError
from study.domains import DOMAINS, domain_of
from study.report.compare_runs import costs_of_all, together
from study.report.tables import COST, markdown, same_draws
from study.run.scores import FILE, PART, VALIDATION, Score, has_scores

RESAMPLES = 2000
FEWEST = 3
"""Recipes that are ranked: of two, any order is a correlation of 1 or -1."""

_CLEAN = {domain.clean for domain in DOMAINS}

Values = npt.NDArray[np.float64]


class Correlation(NamedTuple):
    """Spearman's rank correlation, and its 95 % interval where patients are enough for one."""

    value: float
    low: float | None
    high: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help=f"folders with a {FILE} and a {VALIDATION}")
    options = parser.parse_args(arguments)
    try:
        tested, costs = together(options.runs), costs_of_all(options.runs)
        validated = together([run for run in options.runs if has_scores(run, VALIDATION)], VALIDATION)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    keys = {(score.method, score.draw) for score in validated}
    if lacking := sorted({score.method for score in tested if (score.method, score.draw) not in keys}):
        print(f"Trained before validation was as it is, and left out: {', '.join(lacking)}.\n")
    for title, these in same_draws([score for score in tested if (score.method, score.draw) in keys]).items():
        draws = {score.draw for score in these}
        print(report(title, these, [score for score in validated if score.draw in draws], costs))
    return 0


def report(title: str, tested: Sequence[Score], validated: Sequence[Score], costs: Mapping[str, float]) -> str:
    """Return the table of some draws, and the correlation, as text.

    Args:
        title: Which draws.
        tested: The tests' scores, all of these draws and of methods that have them all.
        validated: The scores on patients to choose by, of these methods at least.
        costs: What a training step costs, by method.
    """
    methods = [*dict.fromkeys(score.method for score in tested)]
    own = [_arrange(score for score in validated if score.method == method) for method in methods]
    theirs = [_arrange((score for score in tested if score.method == method), by_data_set=True) for method in methods]
    lines = [["recipe", COST, "validation", "validation, shifted", "tests' average of shifts"]]
    for method, ours, tests in sorted(zip(methods, own, theirs, strict=True), key=lambda line: -_mean(line[1])):
        clean = float(_by_column(ours[0].only(clean=True)).mean())
        cost = f"{costs[method]:.2f}" if method in costs else ""
        lines.append([method, cost, *(f"{value:.3f}" for value in (clean, _mean(ours), _mean(tests)))])
    if len(methods) < FEWEST:
        said = f"A rank correlation needs {FEWEST} recipes."
    else:
        found = correlate(own, theirs)
        interval = "" if found.low is None else f" (95 % interval over patients {found.low:.2f} to {found.high:.2f})"
        said = f"Spearman's rank correlation of the last two columns: {found.value:.2f}{interval}."
    return f"{title.capitalize()}:\n\n{markdown(lines)}\n\n{said}\n"


class Cohort(NamedTuple):
    """Dice [patient, column, structure] of one recipe on a set of patients, NaN where there is none."""

    values: Values
    columns: list[str]

    def only(self, *, clean: bool) -> Values:
        """Return the values of patients as they are, or under all shifts."""
        return self.values[:, [(column in _CLEAN) == clean for column in self.columns]]


def correlate(
    own: Sequence[Sequence[Cohort]], theirs: Sequence[Sequence[Cohort]], *, resamples: int = RESAMPLES, seed: int = 0
) -> Correlation:
    """Return the rank correlation of recipes' shifted Dice in validation and on tests.

    The interval is a percentile bootstrap over patients, those of each data set drawn apart, the same for all recipes.

    Args:
        own: Of each recipe, the patients to choose by.
        theirs: Of each recipe, the sets of test patients.
        resamples: How often patients are drawn anew.
        seed: Of these draws.
    """
    value = float(_spearman(_over(own), _over(theirs))[0])
    sizes = [[len(cohort.values) for cohort in cohorts] for cohorts in (own[0], theirs[0])]
    if min(min(of_side) for of_side in sizes) < 2:
        return Correlation(value, None, None)
    random = np.random.default_rng(seed)
    times = [[random.multinomial(n, [1 / n] * n, resamples).astype(float) for n in of_side] for of_side in sizes]
    found = _spearman(_over(own, times[0]), _over(theirs, times[1]))
    found = found[~np.isnan(found)]
    low, high = np.percentile(found, (2.5, 97.5)) if len(found) else (None, None)
    return Correlation(value, low, high)


def _arrange(scores: Iterable[Score], *, by_data_set: bool = False) -> list[Cohort]:
    """Sort the Dice of one recipe, of the network alone, by sets of patients: means over phases, repetitions and draws.

    Corrupted columns show the patients of the clean one; with `by_data_set` every other column has its own.
    """
    scores = [*scores]
    domain = domain_of(score.column for score in scores)
    found: dict[str, dict[tuple[str, str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        if score.metric == "dice" and "+" not in score.stage and PART not in score.column:
            cohort = score.column if by_data_set and score.column not in domain.artefacts else domain.clean
            found[cohort][score.patient, score.column, score.structure].append(score.value)
    cohorts = []
    for values in found.values():
        names = [[*dict.fromkeys(key[place] for key in values)] for place in range(3)]
        names[0].sort()  # recipes have the same patients, in one order
        table = np.full([len(each) for each in names], np.nan)
        for key, repeated in values.items():
            table[tuple(each.index(name) for each, name in zip(names, key, strict=True))] = fmean(repeated)
        cohorts.append(Cohort(table, names[1]))
    return cohorts


def _by_column(values: Values, times: Values | None = None) -> Values:
    """Average over patients, each taken as often as `times` [draw, patient] says, then structures: [draw, column]."""
    times = np.ones((1, len(values))) if times is None else times
    per_structure = _divide(np.tensordot(times, np.nan_to_num(values), 1), np.tensordot(times, ~np.isnan(values), 1))
    return _divide(np.nan_to_num(per_structure).sum(2), (~np.isnan(per_structure)).sum(2))


def _divide(sums: Values, counts: Values) -> Values:
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _mean(cohorts: Sequence[Cohort]) -> float:
    return float(_over([cohorts])[0, 0])


def _over(recipes: Sequence[Sequence[Cohort]], times: Sequence[Values] | None = None) -> Values:
    """Average the shifted columns of each recipe: [recipe, draw]."""
    means = []
    for cohorts in recipes:
        drawn: Sequence[Values | None] = times or [None] * len(cohorts)
        shifted = [_by_column(cohort.only(clean=False), each) for cohort, each in zip(cohorts, drawn, strict=True)]
        means.append(np.concatenate(shifted, axis=1).mean(axis=1))
    return np.stack(means)


def _spearman(one: Values, other: Values) -> Values:
    """Correlate ranks over recipes [recipe, draw]; NaN where one side has but ties."""
    ranks = [rankdata(values, axis=0) - (len(values) + 1) / 2 for values in (one, other)]
    size = np.sqrt((ranks[0] ** 2).sum(0) * (ranks[1] ** 2).sum(0))
    return _divide((ranks[0] * ranks[1]).sum(0), size)
