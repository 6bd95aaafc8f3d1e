"""How well a segmentation fits: 3-D Dice per frame and structure, and the means that the table shows."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .augment import rescale
from .data import STRUCTURES, Frame

if TYPE_CHECKING:
    from latentaug import CooperativeModel

PART = "/"
"""In a column's name, sets a part of a test set apart ("M&Ms/A", a vendor): shown on its own, not in the average."""


class Score(NamedTuple):
    """One line of `scores.csv`: one number, and everything that tells it from the others."""

    method: str
    draw: int
    stage: str
    column: str
    patient: str
    phase: str
    structure: str
    metric: str
    value: float


class Cell(NamedTuple):
    """One cell of the table: mean over draws, and their standard deviation where there are at least two."""

    mean: float
    spread: float | None


def dice(predicted: Tensor, labels: Tensor, value: int) -> float:
    """Return the 3-D Dice overlap of one label value; NaN where neither holds it.

    A structure that is missing from the labels only, or from the prediction only, scores 0. Where it is missing from
    both there is nothing to score, and NaN keeps the frame out of every mean.
    """
    ours, theirs = predicted == value, labels == value
    total = int(ours.sum()) + int(theirs.sum())
    return 2 * int((ours & theirs).sum()) / total if total else math.nan


def frame_scores(predicted: Tensor, frame: Frame) -> dict[str, float]:
    """Score a predicted volume [D, H, W] on every structure that its data set labels; absent ones are left out."""
    labels = torch.as_tensor(frame.labels)
    scores = {name: dice(predicted, labels, 1 + STRUCTURES.index(name)) for name in frame.structures}
    return {name: value for name, value in scores.items() if not math.isnan(value)}


@torch.inference_mode()
def segment(model: CooperativeModel, frame: Frame, device: torch.device) -> dict[str, Tensor]:
    """Segment a volume slice by slice: the label map [D, H, W] of either stage.

    A model in eval mode treats every slice alone, so the slices of a volume go through it together.
    """
    logits = model(rescale(torch.as_tensor(frame.image, device=device)[:, None]))
    stages = {"FTN": logits, "FTN+STN": model.refine(logits)}
    return {stage: logits.argmax(1).cpu() for stage, logits in stages.items()}


def evaluate(
    model: CooperativeModel,
    sets: Mapping[str, Iterable[Frame]],
    device: torch.device,
    *,
    method: str,
    draw: int,
    watch: Callable[[str, Frame, Mapping[str, Tensor]], None] | None = None,
) -> list[Score]:
    """Score a model on every test set, by frame and structure.

    A frame that comes several times, as its corruptions do, gets the mean of its scores. Frames whose vendor is known
    are scored a second time under a column of its own. `watch` is called with every column, frame and label maps.
    """
    model.eval()
    values = defaultdict(list)
    for column, frames in sets.items():
        for frame in frames:
            columns = [column, *(column + PART + vendor for name, vendor in frame.group.items() if name == "vendor")]
            stages = segment(model, frame, device)
            if watch is not None:
                watch(column, frame, stages)
            for stage, predicted in stages.items():
                for (structure, value), name in product(frame_scores(predicted, frame).items(), columns):
                    values[stage, name, frame.patient, frame.phase, structure].append(value)
    return [Score(method, draw, *key, "dice", fmean(found)) for key, found in values.items()]


def column_mean(scores: Iterable[Score]) -> dict[str, float]:
    """Average the scores of one method, draw, stage and column per structure: over ED and ES, then over patients."""
    per_patient = defaultdict(list)
    for score in scores:
        per_patient[score.structure, score.patient].append(score.value)
    per_structure = defaultdict(list)
    for (structure, _), values in per_patient.items():
        per_structure[structure].append(fmean(values))
    return {structure: fmean(values) for structure, values in per_structure.items()}


def summarise(values: Iterable[float]) -> Cell:
    """Return mean and spread (sample standard deviation) over draws."""
    values = list(values)
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None)


def count_cropped(frames: Iterable[Frame]) -> dict[str, dict[str, int]]:
    """Count, per patient and structure, the labelled voxels that cropping cut off; untouched patients are left out."""
    cropped: dict[str, Counter[str]] = defaultdict(Counter)
    for frame in frames:
        cropped[frame.patient].update({name: count for name, count in frame.cropped.items() if count})
    return {patient: dict(counts) for patient, counts in cropped.items() if counts}
