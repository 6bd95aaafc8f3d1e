"""How well a segmentation fits: overlap and surface distances for each frame and structure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree
from torch import Tensor

from study.data.augment import crop, rescale
from study.data.frame import Frame
from study.run.scores import LEAST, PART, Score

if TYPE_CHECKING:
    from latentaug import CooperativeModel

PARTS = {"vendor": "", "centre": "centre "}
"""What parts a test set falls into, by the names in `Frame.group`, and how a part's name begins after the `PART`."""

BINS = 15
"""Of certainty, for the calibration error: from 0 to 1, of which an answer of two has the upper half."""
MULTIPLE = 32
"""What the sides of images are padded to: the coarsest stride of most encoders."""

FrameScores: TypeAlias = dict[tuple[str, str], float]
"""What one segmentation of a frame scores, by structure and metric."""


def dice(predicted: Tensor, labels: Tensor, value: int) -> float:
    """Return the 3-D Dice overlap of one label value; NaN where neither holds it.

    A structure that is missing from the labels only, or from the prediction only, scores 0. Where it is missing from
    both there is nothing to score, and NaN keeps the frame out of every mean.
    """
    ours, theirs = predicted == value, labels == value
    total = int(ours.sum()) + int(theirs.sum())
    return 2 * int((ours & theirs).sum()) / total if total else math.nan


def surface_distances(
    predicted: Tensor, labels: Tensor, value: int, spacing: tuple[float, float, float]
) -> tuple[float, float] | None:
    """Return HD95 and ASSD of one label value in 3-D, in the unit of `spacing`; None unless both volumes hold it.

    Surface voxels are those with a face neighbour of another label, the edge of the volume included; distances run
    from voxel centre to voxel centre. HD95 is the larger of the two directed 95th percentiles, ASSD the mean over the
    surface voxels of both sides, as in Maier-Hein et al., *Metrics reloaded*, Nature Methods 2024, and in MONAI.

    Args:
        predicted: Label map [D, H, W].
        labels: Label map [D, H, W].
        value: Which label.
        spacing: Voxel size (z, y, x).
    """
    ours, theirs = (np.asarray(volume) == value for volume in (predicted, labels))
    if not (ours.any() and theirs.any()):
        return None
    (box,) = find_objects((ours | theirs).astype(np.uint8))
    here, there = (_surface(mask[box]) * np.array(spacing) for mask in (ours, theirs))
    forth, back = KDTree(there).query(here)[0], KDTree(here).query(there)[0]
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
    return float(hd95), float(np.concatenate((forth, back)).mean())


def _surface(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the indices [N, 3] of the voxels at the surface of a mask."""
    return np.argwhere(mask & ~binary_erosion(mask))


def frame_scores(predicted: Tensor, frame: Frame, *, distances: bool = True) -> FrameScores:
    """Score a predicted volume [D, H, W] on every structure that its data set labels, by structure and metric.

    A structure that is in neither volume has no score. One that is in a single volume has a Dice of 0 and is missed:
    it has no distances. Without `distances` there is Dice alone, in a tenth of the time.
    """
    labels, scores = torch.as_tensor(frame.labels), {}
    for structure in frame.structures:
        value = frame.value(structure)
        overlap = dice(predicted, labels, value)
        if math.isnan(overlap):
            continue
        scores[structure, "dice"] = overlap
        if not distances:
            continue
        found = surface_distances(predicted, labels, value, frame.spacing)
        if found is not None:
            scores[structure, "hd95"], scores[structure, "assd"] = found
        scores[structure, "missed"] = float(found is None)
    return scores


def further_scores(scores: FrameScores, logits: Tensor, frame: Frame) -> FrameScores:
    """Return which structures of a frame are total failures, and how well the network knows how good it is.

    Args:
        scores: What `frame_scores` gives.
        logits: Of the centre of the frame that the network saw, [D, C, H, W].
        frame: The frame.
    """
    height, width = logits.shape[2:]
    top, left = ((whole - part) // 2 for whole, part in zip(frame.labels.shape[1:], (height, width), strict=True))
    labels = torch.as_tensor(frame.labels[:, top : top + height, left : left + width])
    probabilities, found = logits.float().softmax(1), {}
    for (structure, metric), value in scores.items():
        if metric == "dice":
            at = frame.value(structure)
            found[structure, "failed"] = float(value < LEAST)
            found[structure, "ece"] = calibration_error(probabilities[:, at], labels == at)
            found[structure, "confidence"] = expected_dice(probabilities[:, at], logits.argmax(1) == at)
    return found


def calibration_error(probability: Tensor, inside: Tensor) -> float:
    """Return the expected calibration error of a structure's probability over all pixels of a case.

    Pixels are sorted into `BINS` by how sure the network is of its answer, which is inside or outside; the error is the
    mean, over pixels, of how far the share of right answers in a bin is from the mean certainty in it.

    Args:
        probability: Of the structure, in 0..1, any shape.
        inside: Where the structure is, of the same shape.

    References:
        Guo et al., ICML 2017, arXiv:1706.04599.

    Example:
        >>> calibration_error(torch.tensor([0.9, 0.9, 0.2, 0.2]), torch.tensor([True, True, False, True]))
        0.2
    """
    sure = torch.maximum(probability, 1 - probability).flatten().double()
    right = ((probability >= 0.5) == inside).flatten().double()
    place = (sure * BINS).long().clamp(max=BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.double).index_add_(0, place, right - sure)
    return round(float(gap.abs().sum()) / len(sure), 6)


def expected_dice(probability: Tensor, predicted: Tensor) -> float:
    """Return what the probability of a structure says of the Dice of its prediction; 0 where nothing is predicted.

    Example:
        >>> expected_dice(torch.tensor([0.75, 0.25]), torch.tensor([True, False]))
        0.75
    """
    hits, both = (probability * predicted).double().sum(), probability.double().sum() + predicted.sum()
    return float(2 * hits / both) if both else 0.0


def segment(
    model: CooperativeModel,
    frame: Frame,
    device: torch.device,
    *,
    side: int | None = None,
    stages: Sequence[str] = ("FTN", "FTN+STN"),
) -> dict[str, Tensor]:
    """Segment a volume slice by slice: the label map [D, H, W] of either stage.

    All around the centre that the model sees is background. The arguments are those of `logits_of`.
    """
    seen = logits_of(model, frame, device, side=side, stages=stages)
    return {stage: _around(logits.argmax(1), frame) for stage, logits in seen.items()}


@torch.inference_mode()
def logits_of(
    model: CooperativeModel,
    frame: Frame,
    device: torch.device,
    *,
    side: int | None = None,
    stages: Sequence[str] = ("FTN", "FTN+STN"),
) -> dict[str, Tensor]:
    """Return the logits [D, C, H, W] of either stage on the centre of a volume, slice by slice.

    The stages are the network alone and, unless only one is named, the network corrected by the shape prior.

    A model in eval mode treats every slice alone, so the slices of a volume go through it together. With `side` the
    model sees the central `side`² of every slice, else all of it, continued at the ends up to a multiple of `MULTIPLE`.
    """
    images = torch.as_tensor(frame.image, device=device)[:, None]
    images = rescale(images if side is None else crop(images, side))
    height, width = images.shape[2:]
    if side is None:
        images = F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
    logits = model(images)
    steps = [logits, *(model.refine(logits) for _ in stages[1:])]
    return {stage: one[..., :height, :width].cpu() for stage, one in zip(stages, steps, strict=True)}


def _around(labels: Tensor, frame: Frame) -> Tensor:
    """Put background around the centre of a frame."""
    (height, width), size = labels.shape[1:], frame.labels.shape[1:]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return F.pad(labels, (left, size[1] - width - left, top, size[0] - height - top))


def evaluate(
    model: CooperativeModel,
    sets: Mapping[str, Iterable[Frame]],
    device: torch.device,
    *,
    method: str,
    draw: int,
    side: int | None = None,
    stages: Sequence[str] = ("FTN", "FTN+STN"),
    further: bool = False,
    watch: Callable[[str, Frame, Mapping[str, Tensor], Mapping[str, FrameScores]], None] | None = None,
    distances: bool = True,
) -> list[Score]:
    """Score a model on every test set, by frame, structure and metric; `side` and `stages` as in `segment`.

    A frame that comes several times, as its corruptions do, gets the mean of its scores. Frames whose vendor or centre
    is known are scored again under a column of its own. `watch` is called with every column and frame, and with the
    frame's label maps and `frame_scores` by stage; without `distances` these are Dice alone, with `further` they have
    `further_scores` too.
    """
    model.eval()
    values = defaultdict(list)
    for column, frames in sets.items():
        for frame in frames:
            parts = [start + frame.group[name] for name, start in PARTS.items() if frame.group.get(name)]
            columns = [column, *(column + PART + part for part in parts)]
            seen = logits_of(model, frame, device, side=side, stages=stages)
            maps = {stage: _around(found.argmax(1), frame) for stage, found in seen.items()}
            scores = {stage: frame_scores(predicted, frame, distances=distances) for stage, predicted in maps.items()}
            if further:
                scores = {stage: found | further_scores(found, seen[stage], frame) for stage, found in scores.items()}
            if watch is not None:
                watch(column, frame, maps, scores)
            for stage, found in scores.items():
                for ((structure, metric), value), name in product(found.items(), columns):
                    values[stage, name, frame.patient, frame.phase, structure, metric].append(value)
    return [Score(method, draw, *key, fmean(repeats)) for key, repeats in values.items()]
