"""A case: images with their labels, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

Volume: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.uint8]


class DataError(Exception):
    """Data that cannot be used; the message is one line that names the file and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


@dataclass(frozen=True, eq=False)
class Frame:
    """One labelled case: a volume, or a single image.

    Attributes:
        patient: Whose it is; of images without a patient, their name.
        phase: Which of several of a patient.
        image: float32 [D, H, W]; a single image has one slice.
        labels: uint8 [D, H, W]; 0 is background, and what else it may be is 1 for the first of `classes`, and so on.
        spacing: Voxel size (z, y, x).
        structures: What the data set labels, some of `classes`.
        group: What to report apart, such as {"vendor": "A", "centre": "1"}.
        cropped: Voxels of each structure that a crop cut off.
    """

    classes: ClassVar[tuple[str, ...]] = ()

    patient: str
    phase: str
    image: Volume
    labels: Labels
    spacing: tuple[float, float, float]
    structures: tuple[str, ...]
    group: dict[str, str] = field(default_factory=dict)
    cropped: dict[str, int] = field(default_factory=dict)

    def value(self, structure: str) -> int:
        """Return the label of a structure."""
        return 1 + self.classes.index(structure)
