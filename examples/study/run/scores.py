"""Scores: one number each, the file that keeps them, and their means."""

from __future__ import annotations

import csv
import errno
import io
import lzma
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from study.data.plain_files import read_compressed
from study.run.files import replacing

FILE = "scores.csv.xz"
VALIDATION = "validation.csv.xz"
"""The same of the patients to choose by, under shifts that no test has."""

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
    "failed": Metric("Total failures", 3, False),
    "ece": Metric("Expected calibration error", 4, False),
    "confidence": Metric("Dice that the network expects", 3, True),
}
"""By their names in the file of scores. "missed" is the share of volumes in which either the label or the prediction
lacks the structure: there the two distances are undefined, and they are means over the other volumes. "failed" is the
share of cases whose Dice is below `LEAST`. "confidence" is what the probabilities say of the Dice."""

LEAST = 0.1
"""Below this Dice a case is a total failure."""

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


def write_scores(folder: Path, scores: Iterable[Score], file: str = FILE) -> None:
    """Write a folder's file of scores, one a line; the same scores make the same bytes.

    Values have twice the decimals that tables show: with fewer, rounding makes ties, and these change tests on ranks.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Score._fields)
    writer.writerows(score._replace(value=round(score.value, 2 * METRICS[score.metric].digits)) for score in scores)
    newest, *older = _paths(folder, file)
    with replacing(newest) as temporary:
        temporary.write_bytes(lzma.compress(text.getvalue().encode()))
    for path in older:
        path.unlink(missing_ok=True)


def has_scores(folder: Path, file: str = FILE) -> bool:
    """Tell whether a folder has a file of scores, also one of an earlier version."""
    return any(path.exists() for path in _paths(folder, file))


def read_scores(folder: Path, file: str = FILE) -> list[Score]:
    """Read a folder's file of scores, also one of an earlier version, which compressed it otherwise or not at all.

    Raises:
        OSError: there is none, or it is damaged.
    """
    newest, *older = _paths(folder, file)
    path = next((path for path in (newest, *older) if path.exists()), newest)
    try:
        lines = csv.DictReader(io.StringIO(read_compressed(path)))
        if tuple(lines.fieldnames or ()) != Score._fields:
            raise ValueError(f"its columns are not {', '.join(Score._fields)}")
        return [_score(line) for line in lines]
    except (ValueError, TypeError) as error:
        raise OSError(errno.EIO, f"it is damaged: {error}", str(path)) from None


def _paths(folder: Path, file: str) -> list[Path]:
    """Return where a file of scores may be: as it is written now, and as earlier versions wrote it."""
    return [(folder / file).with_suffix(suffix) for suffix in (".xz", ".gz", "")]


def _score(line: dict[str, Any]) -> Score:
    return Score(**{**line, "draw": int(line["draw"]), "value": float(line["value"])})


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
