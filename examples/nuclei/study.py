"""Who trains, validates and is tested, and under which shifts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from latentaug.robustness import intensity_shifts
from nuclei.images import INVERTED, Frame
from nuclei.presets import Preset
from study.data.frame import DataError
from study.domains import NUCLEI
from study.run.cases import BestAndWorst
from study.run.scores import PART

SHIFTS = ("noise", "blur", "resolution", "gamma", "brightness")
"""Kinds of `intensity_shifts` that methods are chosen by. A change of contrast is none, as all images span 0..1."""
SEVERITIES = (1, 3, 5)
MOST_VALIDATION, WATCHED = 40, 10
"""Images that methods are chosen by, and those of them that are looked at during a training."""

KEPT, PICTURE = 2, 256
"""How many of the best, and of the worst, images of each column are kept to look at, and the longest of their sides."""


class Study:
    """What there is to train, validate and test on.

    Of the in-domain images two fifths are tested and a fifth, 40 at most, validates. These are the same in all draws
    and for all sizes. The others are what draws train on.

    Args:
        images: By domain, each in an order of its own.
        preset: How many train.
        note: What a reader of the results should know about the images.

    Raises:
        DataError: there are too few images in-domain.
    """

    between = 100
    """Fewest iterations between two validations: a pass over ten images takes five."""
    half_precision = True
    """Tests take a third of the time."""
    seen = None
    """Networks see all of a tested image."""
    calibrated = True
    """Tests score failures and calibration too."""

    def __init__(self, images: Mapping[str, Sequence[Frame]], preset: Preset, note: str) -> None:
        self.preset, self.images, self.note = preset, images, note
        own = images.get(NUCLEI.clean, ())
        shuffled = random.Random(0).sample(own, len(own))
        tested, validating = 2 * len(own) // 5, min(MOST_VALIDATION, len(own) // 5)
        self._tested, rest = shuffled[:tested], shuffled[tested:]
        self._validating, self._pool = rest[:validating], rest[validating:]
        if len(self._pool) < preset.train_size or not validating:
            raise DataError(
                f"--train-size {preset.train_size}: of {len(own)} images of {NUCLEI.clean} only {len(self._pool)} are "
                "left to train on. Lower it, or add images."
            )

    def notes(self, draw: int) -> list[str]:
        """Return what a reader of the results should know about the data."""
        counts = (
            f"{self.preset.train_size} images train, {len(self._validating)} validate, {len(self._tested)} are tested"
        )
        return [f"Draw {draw}: {counts} in-domain.", self.note]

    def training(self, draw: int) -> list[Frame]:
        """Return the images to train on."""
        return random.Random(draw).sample(self._pool, len(self._pool))[: self.preset.train_size]

    def validation(self, draw: int) -> list[Frame]:
        """Return the images to look at during a training."""
        return self._validating[:WATCHED]

    def to_choose_by(self, draw: int) -> dict[str, list[Frame]]:
        """Return the images to choose methods by: as they are, and under shifts that no test has, by severity."""
        sets = {NUCLEI.clean: self._validating}
        for kind in SHIFTS:
            for severity in SEVERITIES:
                sets[f"{kind} {severity}"] = [shifted(frame, kind, severity) for frame in self._validating]
        return sets

    def tests(self, draw: int) -> dict[str, list[Frame]]:
        """Return the test sets: in-domain, the other domains, and, as parts of "inverted", those with dark nuclei."""
        others = {name: [*frames] for name, frames in self.images.items() if name != NUCLEI.clean}
        bright = {name: frames for name, frames in others.items() if name not in INVERTED}
        dark = {f"inverted{PART}{name}": others[name] for name in INVERTED if name in others}
        return {NUCLEI.clean: self._tested, **bright, **dark}

    def watch(self) -> BestAndWorst:
        """Return what keeps images to look at."""
        return BestAndWorst(KEPT, side=PICTURE)


def shifted(frame: Frame, kind: str, severity: int) -> Frame:
    """Return an image under a shift, in 0..1 again; the same image, kind and severity, the same result."""
    seed = int.from_bytes(f"{frame.patient} {kind} {severity}".encode(), "little") % (2**61 - 1)
    image = torch.as_tensor(frame.image)[None]
    changed = intensity_shifts()[kind](image, severity, torch.Generator().manual_seed(seed))[0].numpy()
    low, width = changed.min(), np.ptp(changed) or 1.0
    return replace(frame, image=((changed - low) / width).astype(np.float32))
