"""Hard examples of the same few slices at several moments of training: how they change while the model learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentaug import Callback
from study.data.batches import Batch, middle_slices
from study.data.plain_files import open_file
from study.run.files import replacing

FOLDER = "hard_examples"
SHARES = (0, 0.1, 0.3, 1)
"""The moments, as shares of all iterations."""
SLICES = 3

Planes = npt.NDArray[np.uint8]


class Moment(NamedTuple):
    """What masked codes decode to at one moment of training; the arrays are [slices, H, W].

    Attributes:
        iteration: Updates of the weights so far.
        images: The slices themselves; 0..255 stands for 0..1.
        labels: Their labels.
        hard_images: Decoded from the masked image code.
        hard_segmentations: Decoded from the masked shape code, as labels.
    """

    iteration: int
    images: Planes
    labels: Planes
    hard_images: Planes
    hard_segmentations: Planes


class Moments(Callback):
    """Keep hard examples of the same slices, one file for each moment of training.

    It draws from a generator of its own, the same at every moment, and `CooperativeModel.explain` leaves modes,
    statistics and gradients alone: weights are bit for bit those of a training without it. A resumed training writes
    what is still to come; what was written before stays.

    Args:
        folder: Where the files go.
        volumes: Volumes of the validation set; the middle slices of three that lie apart are taken.
    """

    def __init__(self, folder: Path, volumes: Sequence[Batch]) -> None:
        self.folder = folder
        apart = volumes[:: max(1, len(volumes) // SLICES)]  # neighbours are often two phases of one patient
        self.images, self.labels = middle_slices(apart[:SLICES])

    def on_start(self, trainer: Any) -> None:
        """Keep what the initial weights make."""
        if trainer.global_step == 0:
            self._keep(trainer)

    def on_step(self, trainer: Any, losses: object) -> None:
        """Keep what the weights make now, if this is one of the moments."""
        planned = trainer.planned_steps
        if planned is not None and trainer.global_step in {math.ceil(share * planned) for share in SHARES}:
            self._keep(trainer)

    def _keep(self, trainer: Any) -> None:
        generator = torch.Generator(self.images.device).manual_seed(0)
        steps = trainer.model.explain(self.images, self.labels, generator=generator)
        moment = Moment(
            trainer.global_step,
            _grey(self.images),
            _bytes(self.labels),
            _grey(steps.hard_images),
            _bytes(steps.hard_segmentation.argmax(1)),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / f"{moment.iteration:08}.npz") as temporary:
            np.savez_compressed(temporary, **moment._asdict())


def read_moments(folder: Path) -> list[Moment]:
    """Read what `Moments` kept, in order; an empty list where it kept nothing."""
    found = []
    for path in sorted(folder.glob("[0-9]*.npz")):
        with open_file(path) as file, np.load(file) as arrays:
            found.append(Moment(int(arrays["iteration"]), *(arrays[name] for name in Moment._fields[1:])))
    return found


def _grey(images: Tensor) -> Planes:
    return _bytes((images.detach()[:, 0].clamp(0, 1) * 255).round())


def _bytes(tensor: Tensor) -> Planes:
    return tensor.cpu().numpy().astype(np.uint8)
