"""What a study gives to its trainings and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from study.data.frame import Frame
from study.run.metrics import FrameScores
from study.run.presets import Preset


class Watch(Protocol):
    """Sees every tested frame, and keeps what there is to look at."""

    def __call__(
        self, column: str, frame: Frame, stages: Mapping[str, Tensor], scores: Mapping[str, FrameScores]
    ) -> None:
        """Take in one frame of a column, and its label map and scores by every stage."""

    def save(self, folder: Path) -> None:
        """Write what was kept."""


class Study(Protocol):
    """What there is to train, validate and test on."""

    @property
    def preset(self) -> Preset:
        """Sizes, and how to train."""

    @property
    def half_precision(self) -> bool:
        """Whether tests are computed in bfloat16, if the training is."""

    @property
    def between(self) -> int:
        """Fewest iterations between two validations, where a pass over what trains has fewer."""

    @property
    def seen(self) -> int | None:
        """Side of the centre of tested images that networks see; None for all of them."""

    @property
    def calibrated(self) -> bool:
        """Whether tests score failures and calibration too."""

    def watch(self) -> Watch | None:
        """Return what keeps cases to look at; None keeps none."""

    def notes(self, draw: int) -> list[str]:
        """Return what a reader of the results should know about the data."""

    def training(self, draw: int) -> Sequence[Frame]:
        """Return what to train on."""

    def validation(self, draw: int) -> Sequence[Frame]:
        """Return what to select the weights by."""

    def to_choose_by(self, draw: int) -> Mapping[str, Sequence[Frame]]:
        """Return what to choose methods by: as it is, and under shifts that no test has."""

    def tests(self, draw: int) -> Mapping[str, Sequence[Frame]]:
        """Return the test sets by their columns' names, the one in-domain first."""
