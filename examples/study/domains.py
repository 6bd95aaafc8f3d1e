"""The two kinds of images that are studied: what their tests are called, and in which words reports speak of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Domain(NamedTuple):
    """One kind of images.

    Attributes:
        name: What it is called.
        clean: Column of the test set that comes from where the training set does; all others are shifted.
        artefacts: Columns that show the cases of the clean one, changed; every other column has cases of its own.
        case: What a case is, "patient" or "image".
        frame: What a tested volume of a case is called.
        several: Whether there are several structures.
        outlines: Labels that each outline on a picture goes around together.
        cropped: Whether pictures are cropped to the structures.
        titles: Of metrics, where they are not those of `scores.METRICS`.
    """

    name: str
    clean: str
    artefacts: tuple[str, ...] = ()
    case: str = "patient"
    frame: str = "frame"
    several: bool = True
    outlines: tuple[tuple[int, ...], ...] = ((1,),)
    cropped: bool = False
    titles: Mapping[str, str] = {}


CARDIAC = Domain(
    "cardiac MR",
    "ACDC",
    ("RandBias", "RandSpike", "RandGhosting", "RandMotion"),
    outlines=((1,), (1, 2), (3,)),  # both borders of the left ventricle's wall, and the right ventricle
    cropped=True,
)
NUCLEI = Domain(
    "nuclei",
    "fluo256",
    case="image",
    frame="image",
    several=False,
    titles={"dice": "Dice", "hd95": "HD95 in pixels", "assd": "ASSD in pixels"},
)
DOMAINS = (CARDIAC, NUCLEI)


def domain_of(columns: Iterable[str]) -> Domain:
    """Return the kind of images that columns are of: the one whose clean column is there, else the first."""
    there = {*columns}
    return next((domain for domain in DOMAINS if domain.clean in there), CARDIAC)
