"""Images of nuclei from the 2018 Data Science Bowl, as released or sorted into domains already."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from study.data.frame import DataError
from study.data.frame import Frame as Case
from study.data.plain_files import read_bytes

DOMAINS = ("fluo256", "fluo360", "fluo520", "fluo-other", "stained", "bright-grey")
INVERTED = ("stained", "bright-grey")
"""Domains whose nuclei are darker than the background."""
MOST_PIXELS = 2**26
LARGEST = 512
"""Side of the centre that is read of larger images."""

_BY_SIZE = {(256, 256): "fluo256", (360, 360): "fluo360", (520, 696): "fluo520"}
_COLOUR, _BRIGHT = 5.0, 128.0
_SCALE = {"1": 255.0, "L": 1.0, "I;16": 1 / 257, "I": 1 / 257}
"""By Pillow's modes of grey images: what their values are multiplied by to be in 0..255."""
_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green and blue in the luminance

Pixels = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Frame(Case):
    """One image of nuclei, as a volume of one slice; label 1 is all nuclei together."""

    classes: ClassVar[tuple[str, ...]] = ("nuclei",)

    structures: tuple[str, ...] = ("nuclei",)


def read_images(root: Path) -> dict[str, list[Frame]]:
    """Read all images by domain, those of a domain in the order of their names.

    Two layouts are read: `<domain>/<id>_img.png` with `<id>_seg.png`, and the released `<id>/images/*.png` with one
    mask for each nucleus in `<id>/masks/*.png`, here or in `stage1_train`. There, `domain_of` tells domains apart.

    Raises:
        DataError: there is no folder or no image, or a file is missing or can't be read.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Correct --data, or leave it out for generated images.")
    found: dict[str, list[Frame]] = {name: [] for name in DOMAINS}
    for name in DOMAINS:
        for path in _pngs(root / name, "_img"):
            image, stem = pixels(path), path.stem[: -len("_img")]
            labels = mask(path.with_name(f"{stem}_seg{path.suffix}"))
            found[name].append(as_frame(stem, name, image, labels))
    if not any(found.values()):
        for place, path in _released(root):
            image, paths = pixels(path), _pngs(place / "masks")
            if not paths:
                raise DataError(f"{place / 'masks'}: no *.png in it. Unpack it again, or remove {place}.")
            labels = np.zeros(image.shape[:2], bool)
            for one in paths:
                nucleus = mask(one)
                if nucleus.shape != labels.shape:
                    raise DataError(f"{one}: has {nucleus.shape} pixels, its image {labels.shape}. Copy it again.")
                labels |= nucleus
            name = domain_of(image)
            found[name].append(as_frame(place.name, name, image, labels))
    if not any(found.values()):
        raise DataError(
            f"{root}: neither {DOMAINS[0]}/*_img.png nor */images/*.png in it. Pass the folder that "
            "stage1_train.zip was unpacked to."
        )
    return {name: frames for name, frames in found.items() if frames}


def domain_of(image: Pixels) -> str:
    """Return which of `DOMAINS` an image [H, W] or [H, W, 3] of 0..255 is of, as the release doesn't say it.

    A coloured image is stained. A grey one whose median is bright is of a bright field. All others are fluorescence,
    and their size tells which.

    Example:
        >>> domain_of(np.zeros((256, 256)))
        'fluo256'
        >>> domain_of(np.full((256, 320, 3), (200, 150, 220)))
        'stained'
    """
    if image.ndim == 3 and np.ptp(image, axis=2).mean() > _COLOUR:
        return "stained"
    grey = to_grey(image)
    return "bright-grey" if np.median(grey) >= _BRIGHT else _BY_SIZE.get(grey.shape[:2], "fluo-other")


def to_grey(image: Pixels) -> Pixels:
    """Return the luminance [H, W] of an image [H, W] or [H, W, 3]."""
    return image if image.ndim == 2 else image @ _WEIGHTS


def as_frame(name: str, domain: str, image: Pixels, labels: npt.NDArray[np.bool_]) -> Frame:
    """Return the centre of an image, grey and scaled to 0..1, with its labels.

    Raises:
        DataError: image and labels have different sizes.
    """
    grey = to_grey(image)
    if grey.shape != labels.shape:
        raise DataError(f"{name}: the image has {grey.shape} pixels, its mask {labels.shape}. Copy them again.")
    low, width = grey.min(), np.ptp(grey) or 1.0
    centre = tuple(slice(max(0, n - LARGEST) // 2, max(0, n - LARGEST) // 2 + LARGEST) for n in grey.shape)
    scaled = ((grey - low) / width)[centre].astype(np.float32)
    return Frame(name, domain, scaled[None], labels[centre].astype(np.uint8)[None], (1.0, 1.0, 1.0))


def mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read a mask [H, W], true where any of its colours is not black: of nuclei that are white, or have numbers.

    Raises:
        DataError: it is missing or no PNG, which alone keeps black as it is.
    """
    found = pixels(path) > 0
    merged: npt.NDArray[np.bool_] = found if found.ndim == 2 else np.any(found, axis=2)
    return merged


def pixels(path: Path) -> Pixels:
    """Read a PNG [H, W], or [H, W, 3] without what says how opaque it is; of 1, 8 or 16 bits a channel, as 0..255.

    Raises:
        DataError: it is missing, damaged, no PNG, or of more pixels than a file of this kind has.
    """
    try:
        content = io.BytesIO(read_bytes(path))
        with Image.open(content, formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            image.verify()  # by its checksums, after which it has to be opened anew
        with Image.open(content, formats=["PNG"]) as image:
            grey = image.mode in _SCALE
            found = np.asarray(image if grey else image.convert("RGB"), dtype=np.float64)
            return found * _SCALE.get(image.mode, 1.0)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = (
            "it is none" if isinstance(error, UnidentifiedImageError) else getattr(error, "strerror", None) or error
        )
        raise DataError(f"{path}: cannot be read as a PNG ({reason}). Copy it again.") from None


def _pngs(folder: Path, ending: str = "") -> list[Path]:
    """Return the images in a folder whose names have this ending, whatever the case of ".png"; hidden ones are none."""
    try:
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"{folder}: cannot be looked into ({error.strerror}). Allow it, or copy it again.") from None
    return [folder / name for name in names if name.lower().endswith(f"{ending}.png") and not name.startswith(".")]


def _released(root: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of each image of the release, and the image."""
    for place in sorted([*root.glob("*/images"), *root.glob("stage1_train/*/images")]):
        paths = _pngs(place)
        if len(paths) > 1:
            raise DataError(f"{place}: {len(paths)} images, of which one has the masks. Remove the others.")
        for path in paths:
            yield place.parent, path
