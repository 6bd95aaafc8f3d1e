"""What testing keeps beside the scores: 2-D Dice of every labelled slice, and the best and worst frames to look at."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cardiac.data.preprocess import Labels
from cardiac.data.readers import STRUCTURES
from study.data.frame import Frame
from study.data.plain_files import read_text
from study.run.cases import BestAndWorst
from study.run.files import replacing
from study.run.metrics import FrameScores
from study.run.scores import PART, mean_of_known

SLICES = "slices.csv"
KEPT = 3
"""How many of the best, and of the worst, frames of each column are kept."""
THIRDS = ("basal", "middle", "apical")


class SliceScore(NamedTuple):
    """One line of `slices.csv`: the 2-D Dice of one slice, NaN where neither label nor prediction has the structure.

    Attributes:
        slice: Number of the slice in its volume.
        position: How far along the labelled slices it lies, 0 at the base and 1 at the apex.
    """

    stage: str
    column: str
    vendor: str
    patient: str
    phase: str
    slice: int
    position: float
    LV: float
    MYO: float
    RV: float


class Cases(BestAndWorst):
    """Keeps the 2-D Dice of every labelled slice too; of a frame that comes several times, the mean over these."""

    def __init__(self) -> None:
        super().__init__(KEPT)
        self._slices: dict[tuple[str, str, str, str, str, int, float], list[dict[str, float]]] = defaultdict(list)

    def __call__(
        self, column: str, frame: Frame, stages: Mapping[str, Tensor], scores: Mapping[str, FrameScores]
    ) -> None:
        """Take in one frame of a column, and its label map [D, H, W] and `frame_scores` by every stage."""
        super().__call__(column, frame, stages, scores)
        places, vendor = positions(frame.labels), frame.group.get("vendor", "")
        for stage, predicted in stages.items():
            per_slice = slice_dice(predicted, frame)
            for number, place in places.items():
                key = stage, column, vendor, frame.patient, frame.phase, number, place
                self._slices[key].append({name: values[number] for name, values in per_slice.items()})

    def slices(self) -> list[SliceScore]:
        """Return the scores of all slices, in the order in which they came."""
        return [
            SliceScore(*key, *(mean_of_known(one.get(name, math.nan) for one in found) for name in STRUCTURES))
            for key, found in self._slices.items()
        ]

    def save(self, folder: Path) -> None:
        """Write `slices.csv` and `cases.npz`, each whole or not at all."""
        super().save(folder)
        with replacing(folder / SLICES) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(SliceScore._fields)
            writer.writerows([_shown(value) for value in score] for score in self.slices())


def read_slices(path: Path) -> list[SliceScore]:
    """Read the slices' scores that `Cases.save` wrote."""
    lines = [*csv.DictReader(io.StringIO(read_text(path), newline=""))]
    numbers = ("position", *STRUCTURES)
    scores = []
    for line in lines:
        values: dict[str, Any] = {name: float(line[name] or "nan") for name in numbers}
        scores.append(SliceScore(**{**line, "slice": int(line["slice"]), **values}))
    return scores


def positions(labels: Labels) -> dict[int, float]:
    """Return how far along the heart every labelled slice [D, H, W] lies, from 0 at the base to 1 at the apex.

    The base is the end with more labelled area, since files are stacked either way; a lone slice lies at 0.5.

    Example:
        >>> labels = np.zeros((4, 2, 2), np.uint8)
        >>> labels[1, 0, 0], labels[2, 0], labels[3] = 1, 1, 1
        >>> positions(labels)
        {1: 1.0, 2: 0.5, 3: 0.0}
    """
    area = np.count_nonzero(labels, axis=(1, 2))
    found = np.flatnonzero(area)
    if found.size < 2:
        return {int(number): 0.5 for number in found}
    places = (found - found[0]) / (found[-1] - found[0])
    if np.average(places, weights=area[found]) > 0.5:
        places = 1 - places
    return dict(zip(found.tolist(), places.tolist(), strict=True))


def slice_dice(predicted: Tensor, frame: Frame) -> dict[str, list[float]]:
    """Return the 2-D Dice of each slice by structure; NaN where neither volume has the structure in that slice."""
    labels, found = torch.as_tensor(frame.labels), {}
    for name in frame.structures:
        ours, theirs = (volume == 1 + STRUCTURES.index(name) for volume in (predicted, labels))
        both, all_of_them = (ours & theirs).sum((1, 2)), ours.sum((1, 2)) + theirs.sum((1, 2))
        found[name] = (2 * both / all_of_them).tolist()
    return found


def by_third(scores: Iterable[SliceScore], stage: str) -> dict[tuple[str, str], list[float]]:
    """Average one stage's scores by column and structure in each of `THIRDS`; NaN where there are none.

    Slices whose vendor is known count a second time, in a column of their own.
    """
    values: dict[tuple[str, str], list[list[float]]] = defaultdict(lambda: [[] for _ in THIRDS])
    for score in (score for score in scores if score.stage == stage):
        third = min(int(score.position * len(THIRDS)), len(THIRDS) - 1)
        columns = [score.column, score.column + PART + score.vendor] if score.vendor else [score.column]
        for column in columns:
            for name in STRUCTURES:
                values[column, name][third].append(getattr(score, name))
    return {key: [mean_of_known(found) for found in thirds] for key, thirds in values.items()}


def _shown(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return value
