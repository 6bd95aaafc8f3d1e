"""One tested case, as it is kept to look at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.uint8]


class Case(NamedTuple):
    """One tested frame to look at: its middle labelled slice, [H, W] each, and the 3-D Dice of the whole frame."""

    column: str
    patient: str
    phase: str
    stage: str
    dice: float
    image: Plane
    labels: Plane
    prediction: Plane
