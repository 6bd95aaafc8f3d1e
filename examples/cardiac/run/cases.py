"""What testing keeps beside the scores: 2-D Dice of every labelled slice, and the best and worst frames to look at."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cardiac.data.preprocess import Labels
from cardiac.data.readers import STRUCTURES
from study.data.frame import Frame
from study.data.plain_files import open_file, read_text
from study.run.case import Case
from study.run.files import replacing
from study.run.metrics import FrameScores
from study.run.scores import PART, mean_of_known

SLICES, CASES = "slices.csv", "cases.npz"
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


class Cases:
    """Watches `metrics.evaluate`, which calls it with every frame that it segments.

    Of a frame that comes several times, as its corruptions do, slices get the mean of their scores, and the best and
    the worst repetition stand for it among the cases. Cases show the last stage; a frame's Dice is the mean over the
    structures that its data set labels.
    """

    def __init__(self) -> None:
        self._slices: dict[tuple[str, str, str, str, str, int, float], list[dict[str, float]]] = defaultdict(list)
        self._best: dict[str, list[Case]] = defaultdict(list)
        self._worst: dict[str, list[Case]] = defaultdict(list)

    def __call__(
        self, column: str, frame: Frame, stages: Mapping[str, Tensor], scores: Mapping[str, FrameScores]
    ) -> None:
        """Take in one frame of a column, and its label map [D, H, W] and `frame_scores` by every stage."""
        places, vendor = positions(frame.labels), frame.group.get("vendor", "")
        for stage, predicted in stages.items():
            per_slice = slice_dice(predicted, frame)
            for number, place in places.items():
                key = stage, column, vendor, frame.patient, frame.phase, number, place
                self._slices[key].append({name: values[number] for name, values in per_slice.items()})
        *_, last = stages
        dice = [value for (_, metric), value in scores[last].items() if metric == "dice"]
        if dice:  # something is labelled, or predicted
            case = _case(column, frame, last, stages[last], fmean(dice))
            self._best[column] = _first([*self._best[column], case], -1)
            self._worst[column] = _first([*self._worst[column], case], 1)

    def slices(self) -> list[SliceScore]:
        """Return the scores of all slices, in the order in which they came."""
        return [
            SliceScore(*key, *(mean_of_known(one.get(name, math.nan) for one in found) for name in STRUCTURES))
            for key, found in self._slices.items()
        ]

    def cases(self) -> list[Case]:
        """Return the cases of each column from worst to best: half of them are among the worst, half among the best."""
        kept = []
        for column, best in self._best.items():
            unique = {id(case): case for case in (*self._worst[column], *best)}
            kept += sorted(unique.values(), key=lambda case: case.dice)
        return kept

    def save(self, folder: Path) -> None:
        """Write `slices.csv` and `cases.npz`, each whole or not at all."""
        with replacing(folder / SLICES) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(SliceScore._fields)
            writer.writerows([_shown(value) for value in score] for score in self.slices())
        columns = zip(*self.cases(), strict=True)
        with replacing(folder / CASES) as temporary:
            arrays: dict[str, Any] = dict(zip(Case._fields, map(np.array, columns), strict=False))
            np.savez_compressed(temporary, **arrays)


def read_slices(path: Path) -> list[SliceScore]:
    """Read the slices' scores that `Cases.save` wrote."""
    lines = [*csv.DictReader(io.StringIO(read_text(path), newline=""))]
    numbers = ("position", *STRUCTURES)
    scores = []
    for line in lines:
        values: dict[str, Any] = {name: float(line[name] or "nan") for name in numbers}
        scores.append(SliceScore(**{**line, "slice": int(line["slice"]), **values}))
    return scores


def read_cases(path: Path) -> list[Case]:
    """Read the cases that `Cases.save` wrote."""
    with open_file(path) as file, np.load(file) as arrays:
        columns = [arrays[name] if arrays[name].ndim > 1 else arrays[name].tolist() for name in Case._fields]
    return [Case(*row) for row in zip(*columns, strict=True)]


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


def _case(column: str, frame: Frame, stage: str, predicted: Tensor, dice: float) -> Case:
    labelled = [*positions(frame.labels)] or [*range(len(frame.labels))]
    middle = labelled[len(labelled) // 2]
    image = (frame.image[middle].clip(0, 1) * 255).round().astype(np.uint8)
    planes = frame.labels[middle].astype(np.uint8), predicted[middle].numpy().astype(np.uint8)
    return Case(column, frame.patient, frame.phase, stage, dice, image, *planes)


def _first(cases: Sequence[Case], sign: int) -> list[Case]:
    """Return the first few in ascending (1) or descending (-1) order of Dice, no frame twice."""
    found: dict[tuple[str, str], Case] = {}
    for case in sorted(cases, key=lambda case: sign * case.dice):
        found.setdefault((case.patient, case.phase), case)
    return [*found.values()][:KEPT]


def _shown(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return value
