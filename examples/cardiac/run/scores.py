"""Scores: one number each, the file that keeps them, and their means."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from cardiac.run.files import write_csv

AVERAGE = "average"
PART = "/"
"""In a column's name, sets a part of a test set apart ("M&Ms/A", a vendor): shown on its own, not in the average."""


class Metric(NamedTuple):
    """What a metric is called, how many decimals mean something, and which way is better."""

    title: str
    digits: int
    higher_is_better: bool


METRICS = {
    "dice": Metric("3-D Dice", 3, True),
    "hd95": Metric("HD95 in mm", 2, False),
    "assd": Metric("ASSD in mm", 2, False),
    "missed": Metric("Missed structures", 3, False),
}
"""By their names in the file of scores. "missed" is the share of volumes in which either the label or the prediction
lacks the structure: there the two distances are undefined, and they are means over the other volumes."""

DISTANCES = ("hd95", "assd")
"""The metrics that are undefined where a structure is missed."""


class Score(NamedTuple):
    """One line of the file of scores: one number, and everything that tells it from the others."""

    method: str
    draw: int
    stage: str
    column: str
    patient: str
    phase: str
    structure: str
    metric: str
    value: float


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write scores as CSV, one number a line."""
    write_csv(path, Score._fields, scores)


def read_scores(path: Path) -> list[Score]:
    """Read what `write_scores` wrote."""
    with path.open(newline="") as file:
        return [
            Score(**{**line, "draw": int(line["draw"]), "value": float(line["value"])}) for line in csv.DictReader(file)
        ]


def column_mean(scores: Iterable[Score]) -> dict[str, float]:
    """Average the scores of one method, draw, stage and column per structure: over ED and ES, then over patients."""
    per_patient = defaultdict(list)
    for score in scores:
        per_patient[score.structure, score.patient].append(score.value)
    per_structure = defaultdict(list)
    for (structure, _), values in per_patient.items():
        per_structure[structure].append(fmean(values))
    return {structure: fmean(values) for structure, values in per_structure.items()}


def mean_of_known(values: Iterable[float]) -> float:
    """Average what is not NaN; NaN if there is nothing else."""
    return fmean([value for value in values if not math.isnan(value)] or [math.nan])
