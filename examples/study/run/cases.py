"""What testing keeps to look at: the best and the worst cases of each column."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from study.data.frame import Frame
from study.data.plain_files import open_file
from study.run.files import replacing
from study.run.metrics import FrameScores

CASES = "cases.npz"

Plane = npt.NDArray[np.uint8]


class Case(NamedTuple):
    """One tested frame to look at: its middle labelled slice, [H, W] each, and the Dice of the whole frame."""

    column: str
    patient: str
    phase: str
    stage: str
    dice: float
    image: Plane
    labels: Plane
    prediction: Plane


class BestAndWorst:
    """Watches `metrics.evaluate`, which calls it with every frame that it segments.

    Of a frame that comes several times, as its corruptions do, the best and the worst repetition stand for it. Cases
    show the last stage; a frame's Dice is the mean over the structures that its data set labels.

    Args:
        kept: How many of the best, and of the worst, frames of each column are kept.
        side: The longest that a picture has; of larger ones every second pixel is kept, or every third, and so on.
            None keeps all pixels.
    """

    def __init__(self, kept: int, side: int | None = None) -> None:
        self.kept, self.side = kept, side
        self._best: dict[str, list[Case]] = defaultdict(list)
        self._worst: dict[str, list[Case]] = defaultdict(list)

    def __call__(
        self, column: str, frame: Frame, stages: Mapping[str, Tensor], scores: Mapping[str, FrameScores]
    ) -> None:
        """Take in one frame of a column, and its label map [D, H, W] and `frame_scores` by every stage."""
        *_, last = stages
        dice = [value for (_, metric), value in scores[last].items() if metric == "dice"]
        if dice:  # something is labelled, or predicted
            planes = self._planes(frame, stages[last].numpy())
            case = Case(column, frame.patient, frame.phase, last, fmean(dice), *planes)
            self._best[column] = self._first([*self._best[column], case], -1)
            self._worst[column] = self._first([*self._worst[column], case], 1)

    def cases(self) -> list[Case]:
        """Return the cases of each column from worst to best: half of them are among the worst, half among the best."""
        kept = []
        for column, best in self._best.items():
            unique = {id(case): case for case in (*self._worst[column], *best)}
            kept += sorted(unique.values(), key=lambda case: case.dice)
        return kept

    def save(self, folder: Path) -> None:
        """Write `cases.npz`, whole or not at all."""
        kept = self.cases()
        shapes = np.array([case.image.shape for case in kept]).reshape(-1, 2)
        arrays: dict[str, Any] = {"shape": shapes}
        for name in Case._fields if kept else ():
            found = [getattr(case, name) for case in kept]
            arrays[name] = np.array(found if np.ndim(found[0]) == 0 else _padded(found, *shapes.max(axis=0)))
        with replacing(folder / CASES) as temporary:
            np.savez_compressed(temporary, **arrays)

    def _planes(self, frame: Frame, predicted: npt.NDArray[np.int64]) -> tuple[Plane, Plane, Plane]:
        labelled = np.flatnonzero(frame.labels.any(axis=(1, 2)))
        middle = labelled[len(labelled) // 2] if len(labelled) else len(frame.labels) // 2
        step = 1 if self.side is None else -(-max(frame.labels.shape[1:]) // self.side)
        image = (frame.image[middle].clip(0, 1) * 255).round()
        image, labels, found = (
            plane[::step, ::step].astype(np.uint8) for plane in (image, frame.labels[middle], predicted[middle])
        )
        return image, labels, found

    def _first(self, cases: Sequence[Case], sign: int) -> list[Case]:
        """Return the first few in ascending (1) or descending (-1) order of Dice, no frame twice."""
        found: dict[tuple[str, str], Case] = {}
        for case in sorted(cases, key=lambda case: sign * case.dice):
            found.setdefault((case.patient, case.phase), case)
        return [*found.values()][: self.kept]


def _padded(planes: Sequence[Plane], height: int, width: int) -> list[Plane]:
    """Fill planes up to one size, below and on the right."""
    return [np.pad(plane, ((0, height - plane.shape[0]), (0, width - plane.shape[1]))) for plane in planes]


def read_cases(path: Path) -> list[Case]:
    """Read the cases that `BestAndWorst.save` wrote; an earlier version wrote pictures of one size, and no shapes."""
    with open_file(path) as file, np.load(file) as arrays:
        words = [arrays[name].tolist() for name in Case._fields[:5]]
        stacks = [arrays[name] for name in Case._fields[5:]]
        shapes = arrays["shape"] if "shape" in arrays else [stacks[0].shape[1:]] * len(stacks[0])
    planes = [[plane[:h, :w] for plane, (h, w) in zip(stack, shapes, strict=True)] for stack in stacks]
    return [Case(*row) for row in zip(*words, *planes, strict=True)]
