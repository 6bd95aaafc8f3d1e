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

from cardiac.data.augment import crop, rescale
from cardiac.data.readers import STRUCTURES, Frame
from cardiac.run.scores import PART, Score

if TYPE_CHECKING:
    from latentaug import CooperativeModel

PARTS = {"vendor": "", "centre": "centre "}
"""What parts a test set falls into, by the names in `Frame.group`, and how a part's name begins after the `PART`."""

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
        value = 1 + STRUCTURES.index(structure)
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


@torch.inference_mode()
def segment(
    model: CooperativeModel,
    frame: Frame,
    device: torch.device,
    *,
    side: int | None = None,
    stages: Sequence[str] = ("FTN", "FTN+STN"),
) -> dict[str, Tensor]:
    """Segment a volume slice by slice: the label map [D, H, W] of either stage.

    The stages are the network alone and, unless only one is named, the network corrected by the shape prior.

    A model in eval mode treats every slice alone, so the slices of a volume go through it together. With `side` the
    model sees the central `side`² of every slice, and all around it is background.
    """
    height, width = frame.image.shape[1:]
    side = side or min(height, width)
    logits = model(rescale(crop(torch.as_tensor(frame.image, device=device)[:, None], side)))
    steps = [logits, *(model.refine(logits) for _ in stages[1:])]
    top, left = (height - side) // 2, (width - side) // 2
    around = (left, width - side - left, top, height - side - top)
    return {stage: F.pad(one.argmax(1), around).cpu() for stage, one in zip(stages, steps, strict=True)}


def evaluate(
    model: CooperativeModel,
    sets: Mapping[str, Iterable[Frame]],
    device: torch.device,
    *,
    method: str,
    draw: int,
    side: int | None = None,
    stages: Sequence[str] = ("FTN", "FTN+STN"),
    watch: Callable[[str, Frame, Mapping[str, Tensor], Mapping[str, FrameScores]], None] | None = None,
    distances: bool = True,
) -> list[Score]:
    """Score a model on every test set, by frame, structure and metric; `side` and `stages` as in `segment`.

    A frame that comes several times, as its corruptions do, gets the mean of its scores. Frames whose vendor or centre
    is known are scored again under a column of its own. `watch` is called with every column and frame, and with the
    frame's label maps and `frame_scores` by stage; without `distances` these are Dice alone.
    """
    model.eval()
    values = defaultdict(list)
    for column, frames in sets.items():
        for frame in frames:
            parts = [start + frame.group[name] for name, start in PARTS.items() if frame.group.get(name)]
            columns = [column, *(column + PART + part for part in parts)]
            maps = segment(model, frame, device, side=side, stages=stages)
            scores = {stage: frame_scores(predicted, frame, distances=distances) for stage, predicted in maps.items()}
            if watch is not None:
                watch(column, frame, maps, scores)
            for stage, found in scores.items():
                for ((structure, metric), value), name in product(found.items(), columns):
                    values[stage, name, frame.patient, frame.phase, structure, metric].append(value)
    return [Score(method, draw, *key, fmean(repeats)) for key, repeats in values.items()]
