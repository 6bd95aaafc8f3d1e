"""One line for each method: what it costs, how well it does in-domain and elsewhere, and whether it knows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from study.domains import domain_of
from study.report.tables import COST
from study.run.scores import LEAST, PART, Score, mean_of_known

SHIFTS, SIDE = "shifts", ", "
"""The column of all shifts; and what sets it, or the in-domain column, apart from a figure in a heading."""

MEANINGS = {
    COST: "the time of a training step, in steps of the network alone.",
    SHIFTS: "all columns but the in-domain one and those with a slash in their names, which are apart.",
    "failures": f"the share of cases with a Dice below {LEAST}.",
    "HD95": "95th percentile of the distances between borders, over the cases where neither side lacks the structure.",
    "ECE": "expected calibration error: how far the certainty of pixels is from the share of right ones among them.",
    "correlation": (
        "Spearman's, over the cases of a column, of the Dice that the network expects by its own probabilities with "
        "the Dice that it has."
    ),
}
"""What the headings mean."""
MEANS = "All numbers are of the network alone: means over cases, then over structures, columns and draws."
ABOUT = " ".join(
    [MEANS, *(f"*{name[0].upper()}{name[1:]}*: {meaning}" for name, meaning in MEANINGS.items() if name != COST)]
)

Cases = Mapping[str, Mapping[tuple[str, str], float]]
"""Values of one column, draw and structure, by metric and then by case."""


def summary_grid(scores: Iterable[Score], costs: Mapping[str, float] | None = None) -> list[list[str]]:
    """Lay out a line for each method, headings first; what a method has no value of stays empty.

    Args:
        scores: Of tests; of methods with the same draws, so that the lines compare.
        costs: What a training step of each method costs in plain steps.
    """
    methods = _arrange(scores)
    columns = dict.fromkeys(column for cells in methods.values() for column, _, _ in cells)
    clean = domain_of(columns).clean
    shifted = [name for name in columns if name != clean and PART not in name]
    apart = [name for name in columns if PART in name and name.partition(PART)[0] not in columns]
    sides = {clean: [clean], SHIFTS: shifted}
    head = ["method", "draws", COST, clean, *shifted, SHIFTS, *apart]
    lines = [[*head, *(f"{what}{SIDE}{side}" for what in FIGURES for side in sides)]]
    for method, cells in methods.items():
        dice = [_over(cells, names, _mean_of("dice")) for names in ([clean], *([s] for s in shifted), shifted)]
        dice += [_over(cells, [name], _mean_of("dice")) for name in apart]
        further = [
            _shown(_over(cells, names, of), digits) for of, digits in FIGURES.values() for names in sides.values()
        ]
        cost = f"{costs[method]:.2f}" if costs and method in costs else ""
        draws = str(len({draw for _, draw, _ in cells}))
        lines.append([method, draws, cost, *(_shown(value, 3) for value in dice), *further])
    return lines


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN of fewer than three, or where one side has but ties.

    Example:
        >>> correlation([0.1, 0.2, 0.7], [0.5, 0.6, 0.9])
        1.0
    """
    if len(one) < 3:
        return math.nan
    ranks = [rankdata(values) - (len(one) + 1) / 2 for values in (one, other)]
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return round(float((ranks[0] * ranks[1]).sum()) / size, 12) if size else math.nan


def _mean_of(metric: str) -> Callable[[Cases], float]:
    return lambda cases: mean_of_known(cases.get(metric, {}).values())


def _failures(cases: Cases) -> float:
    return mean_of_known(float(value < LEAST) for value in cases.get("dice", {}).values())


def _knows(cases: Cases) -> float:
    expected, dice = cases.get("confidence", {}), cases["dice"]
    both = [key for key in dice if key in expected]
    return correlation([expected[key] for key in both], [dice[key] for key in both])


FIGURES: Mapping[str, tuple[Callable[[Cases], float], int]] = {
    "failures": (_failures, 3),
    "HD95": (_mean_of("hd95"), 1),
    "ECE": (_mean_of("ece"), 4),
    "correlation": (_knows, 2),
}
"""What is shown beside Dice, and how many of its digits."""


def _arrange(scores: Iterable[Score]) -> dict[str, dict[tuple[str, int, str], dict[str, dict[tuple[str, str], float]]]]:
    """Sort the scores of the network alone by method; column, draw and structure; metric; case."""
    methods: dict[str, dict[tuple[str, int, str], dict[str, dict[tuple[str, str], float]]]] = {}
    for s in scores:
        if "+" not in s.stage:
            cells = methods.setdefault(s.method, defaultdict(lambda: defaultdict(dict)))
            cells[s.column, s.draw, s.structure][s.metric][s.patient, s.phase] = s.value
    return methods


def _over(cells: Mapping[tuple[str, int, str], Cases], columns: Sequence[str], of: Callable[[Cases], float]) -> float:
    """Average a figure over structures, then over columns, then over draws, leaving out where there is none."""
    found: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (column, draw, _), cases in cells.items():
        if column in columns:
            found[draw][column].append(of(cases))
    return mean_of_known(mean_of_known(map(mean_of_known, by_column.values())) for by_column in found.values())


def _shown(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
