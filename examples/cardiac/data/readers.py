"""Readers of short-axis cardiac MR: the raw ACDC and M&Ms releases, and a plain preprocessed layout.

All of them return a list of `Frame`, with the axes [slice, row, column] and the labels LV=1, MYO=2, RV=3. The axes are
the file's, reversed: headers are not used to turn volumes, since preprocessed copies often lose the orientation.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from cardiac.data.preprocess import (
    SPACING,
    Labels,
    Volume,
    clip_percentiles,
    halve_image,
    halve_labels,
    pad_and_crop,
    resample_image,
    resample_labels,
    rescale_slices,
)

STRUCTURES = ("LV", "MYO", "RV")
"""Label 1, 2 and 3."""

PHASES = ("ED", "ES")
MNMS_SPLITS = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")

_ACDC_FOLDERS = (".", "training", "testing", "database/training", "database/testing")
_ACDC_LABELS = (0, 3, 2, 1)  # the release has RV=1, MYO=2, LV=3
_OUR_LABELS = (0, 1, 2, 3)
_MNMS_COLUMNS = ("External code", "Vendor", "Centre", "ED", "ES")


class DataError(Exception):
    """Data that cannot be used; the message is one line that names the file and the remedy."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One labelled moment of one patient's heart.

    Attributes:
        patient: "007" in ACDC, the external code in M&Ms, else the folder's name.
        phase: "ED" or "ES".
        image: float32 [D, H, W]; every slice spans 0..1.
        labels: uint8 [D, H, W]; 0 is background, 1 to 3 are `STRUCTURES`.
        spacing: Voxel size in mm (z, y, x).
        structures: What the data set labels; Sunnybrook has no RV, so a 0 there says nothing about it.
        group: What to report apart, such as {"vendor": "A", "centre": "1"}.
        cropped: Voxels of each structure that the crop to `size` cut off, counted at `SPACING`.
    """

    patient: str
    phase: str
    image: Volume
    labels: Labels
    spacing: tuple[float, float, float]
    structures: tuple[str, ...] = STRUCTURES
    group: dict[str, str] = field(default_factory=dict)
    cropped: dict[str, int] = field(default_factory=dict)


def read_acdc(
    root: str | os.PathLike[str],
    *,
    patients: Sequence[str] | None = None,
    size: int = 192,
    percentiles: tuple[float, float] = (2, 98),
) -> list[Frame]:
    """Read ACDC, as released (any of its folder layouts) or preprocessed; which of them is found out.

    Args:
        root: The folder with `training/`, with `database/`, or with the patients' folders.
        patients: Three-digit numbers; None reads all. Who is not there is left out.
        size: Side of the centre crop in voxels of `SPACING`.
        percentiles: Raw intensities are clipped to these; preprocessed files are never clipped.

    Raises:
        DataError: A file or folder is missing, unreadable or contradicts another, or none of `patients` is there.
    """
    root = _existing(root)
    folders = _collect((f for place in _ACDC_FOLDERS for f in _subfolders(root / place, "patient[0-9]*")), "patient")
    if not folders:
        return read_preprocessed(root, patients=patients, size=size)
    frames = []
    for patient, folder in _select(folders, patients, root).items():
        info = _read_info(folder / "Info.cfg")
        for phase in PHASES:
            stem = f"patient{patient}_frame{_number(info.get(phase), phase, folder / 'Info.cfg'):02d}"
            paths = folder / f"{stem}.nii.gz", folder / f"{stem}_gt.nii.gz"
            image, labels, spacing = _read_pair(paths, _ACDC_LABELS)
            image = clip_percentiles(image, percentiles)
            frames.append(_frame(patient, phase, image, labels, spacing, size))
    return frames


def read_mnms(
    root: str | os.PathLike[str],
    *,
    patients: Sequence[str] | None = None,
    size: int = 192,
    percentiles: tuple[float, float] = (2, 98),
    splits: Sequence[str] = ("Training/Labeled",),
) -> list[Frame]:
    """Read M&Ms as released: split folders, 4-D volumes, and a CSV that says which frames are labelled.

    Args:
        root: The folder with the CSV and the split folders.
        patients: External codes; None reads all of `splits`. Who is not there is left out.
        size: Side of the centre crop in voxels of `SPACING`.
        percentiles: Intensities of a frame are clipped to these.
        splits: Which split folders to read, of `MNMS_SPLITS`. The default holds the 150 labelled subjects.

    Raises:
        DataError: A file or folder is missing, unreadable or contradicts another, or none of `patients` is there.
    """
    root = _existing(root)
    table_path, table = _read_table(root)
    everyone = _collect(f for split in MNMS_SPLITS for f in _subfolders(root / split))
    folders = {code: folder for code, folder in everyone.items() if folder.parent in [root / split for split in splits]}
    frames = []
    for code, folder in _select(folders, patients, root).items():
        if code not in table:
            raise DataError(f"{table_path}: no row for subject {code} of {folder}; add it, or remove the folder.")
        row = table[code]
        paths = folder / f"{code}_sa.nii.gz", folder / f"{code}_sa_gt.nii.gz"
        images, labels, spacing = _read_pair(paths, _OUR_LABELS, dimensions=4)
        group = {"vendor": row["Vendor"].strip(), "centre": row["Centre"].strip()}
        for phase in PHASES:
            time = _labelled_time(row, phase, labels, paths[1], table_path)
            image = clip_percentiles(images[time], percentiles)
            frames.append(_frame(code, phase, image, labels[time], spacing, size, group=group))
    return frames


def read_preprocessed(
    root: str | os.PathLike[str], *, patients: Sequence[str] | None = None, size: int = 192
) -> list[Frame]:
    """Read `<patient>/{ED,ES}_{img,seg}.nii.gz`: intensities as they are, labels LV=1, MYO=2, RV=3.

    A patient may have one phase only. `structures` are those that occur anywhere in what is read.

    Args:
        root: The folder with one folder per patient.
        patients: Folder names; None reads all. Who is not there is left out.
        size: Side of the centre crop in voxels of `SPACING`.

    Raises:
        DataError: A file or folder is missing, unreadable or contradicts another, or none of `patients` is there.
    """
    root = _existing(root)
    folders = _collect(file.parent for file in root.glob("*/E[DS]_*.nii.gz"))
    frames = []
    for patient, folder in _select(folders, patients, root).items():
        for phase in PHASES:
            paths = folder / f"{phase}_img.nii.gz", folder / f"{phase}_seg.nii.gz"
            if any(path.exists() for path in paths):
                image, labels, spacing = _read_pair(paths, _OUR_LABELS)
                frames.append(_frame(patient, phase, image.astype(np.float32), labels, spacing, size))
    structures = tuple(
        name
        for label, name in enumerate(STRUCTURES, start=1)
        if any(f.cropped[name] or (f.labels == label).any() for f in frames)
    )
    return [replace(f, structures=structures, cropped={s: f.cropped[s] for s in structures}) for f in frames]


def halve(frame: Frame) -> Frame:
    """Halve a frame's in-plane resolution: mean of 2x2 voxels, commonest of their labels; slices span 0..1 again.

    `cropped` still counts voxels of the full resolution.
    """
    if any(n % 2 for n in frame.image.shape[1:]):
        raise ValueError(f"halve() needs even planes; got {frame.image.shape[1:]}. Read with an even `size`.")
    z, y, x = frame.spacing
    return replace(frame, image=halve_image(frame.image), labels=halve_labels(frame.labels), spacing=(z, 2 * y, 2 * x))


def count_cropped(frames: Iterable[Frame]) -> dict[str, dict[str, int]]:
    """Count, per patient and structure, the labelled voxels that cropping cut off; untouched patients are left out."""
    cropped: dict[str, Counter[str]] = defaultdict(Counter)
    for frame in frames:
        cropped[frame.patient].update({name: count for name, count in frame.cropped.items() if count})
    return {patient: dict(counts) for patient, counts in cropped.items() if counts}


def _frame(
    patient: str,
    phase: str,
    image: Volume,
    labels: Labels,
    spacing: tuple[float, float, float],
    size: int,
    *,
    group: Mapping[str, str] | None = None,
) -> Frame:
    """Resample, crop and scale one volume."""
    resampled = resample_labels(labels, spacing[1:])
    kept = pad_and_crop(resampled, size)
    lost = np.bincount(resampled.ravel(), minlength=4) - np.bincount(kept.ravel(), minlength=4)
    image = rescale_slices(pad_and_crop(resample_image(image, spacing[1:]), size))
    cropped = {name: int(lost[label]) for label, name in enumerate(STRUCTURES, start=1)}
    return Frame(patient, phase, image, kept, (spacing[0], SPACING, SPACING), group=dict(group or {}), cropped=cropped)


def _existing(root: str | os.PathLike[str]) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; pass the folder that holds the data set.")
    return root


def _subfolders(folder: Path, pattern: str = "[!.]*") -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_dir())


def _collect(folders: Iterable[Path], prefix: str = "") -> dict[str, Path]:
    """Folders by patient, refusing a patient who is in two splits."""
    found: dict[str, Path] = {}
    for folder in folders:
        patient = folder.name.removeprefix(prefix)
        if found.setdefault(patient, folder) != folder:
            raise DataError(f"{folder}: patient {patient} is also in {found[patient].parent}; remove one of the two.")
    return dict(sorted(found.items()))


def _select(folders: dict[str, Path], patients: Sequence[str] | None, root: Path) -> dict[str, Path]:
    """The folders of the patients asked for, as far as they are there."""
    if not folders:
        raise DataError(f"{root}: no patient in any layout known here; pass the folder that holds the data set.")
    if patients is None:
        return folders
    chosen = {patient: folders[patient] for patient in patients if patient in folders}
    if not chosen:
        raise DataError(f"{root}: none of the patients {', '.join(patients)}; it has {', '.join(folders)}.")
    return chosen


def _read_info(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise DataError(f"{path}: missing; copy it from the ACDC release, it says which frames are ED and ES.")
    pairs = (line.split(":", 1) for line in path.read_text(errors="replace").splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _number(value: str | None, name: str, path: Path) -> int:
    if value is None or not value.strip().isdigit():
        raise DataError(f"{path}: {name} must be a frame number, got {value!r}; copy the file from the release again.")
    return int(value)


def _read_table(root: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    """The newest of M&Ms' information tables, and its rows by external code."""
    tables = sorted(root.glob("*M&Ms*.csv"))
    if not tables:
        raise DataError(f"{root}: no *M&Ms*.csv; copy the release's information table here, it names ED and ES.")
    with open(tables[-1], newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file, restval="")
        absent = [column for column in _MNMS_COLUMNS if column not in (reader.fieldnames or ())]
        if absent:
            raise DataError(f"{tables[-1]}: no column {', '.join(absent)}; copy the table from the release again.")
        return tables[-1], {row["External code"].strip(): row for row in reader}


def _labelled_time(row: dict[str, str], phase: str, labels: Labels, path: Path, table: Path) -> int:
    """Which frame of a 4-D volume the table names (it counts from 0), provided that it has labels."""
    time = _number(row[phase], f"{phase} of {row['External code']}", table)
    labelled = np.flatnonzero(labels.any(axis=(1, 2, 3))).tolist()
    if time not in labelled:
        raise DataError(f"{path}: frame {time} has no labels, frames {labelled} do; correct {phase} in {table.name}.")
    return time


def _read_pair(
    paths: tuple[Path, Path], label_map: tuple[int, ...], *, dimensions: int = 3
) -> tuple[npt.NDArray[np.generic], Labels, tuple[float, float, float]]:
    """An image and its labels with the axes reversed to [(time,) slice, row, column], and the voxel size (z, y, x)."""
    image_path, labels_path = paths
    for path, other in (paths, reversed(paths)):
        if not path.is_file():
            raise DataError(f"{path}: missing, {other.name} needs it; copy it from the data set again.")
    image, labels = _open(image_path), _open(labels_path)
    if image.shape != labels.shape or len(image.shape) != dimensions:
        raise DataError(
            f"{labels_path}: shape {labels.shape}, image {image.shape}; both must have the same {dimensions} axes, "
            "copy the two files from the same release."
        )
    spacing, labels_spacing = (file.header.get_zooms()[:3] for file in (image, labels))
    if not (np.allclose(spacing, labels_spacing, atol=1e-3) and np.allclose(image.affine, labels.affine, atol=1e-2)):
        raise DataError(
            f"{labels_path}: affine or voxel size differs from {image_path.name}'s; resample one to the other."
        )
    x, y, z = (float(step) for step in spacing)
    return _voxels(image, image_path), _known_labels(_voxels(labels, labels_path), label_map, labels_path), (z, y, x)


def _open(path: Path) -> nib.Nifti1Image:
    return _readable(path, lambda: nib.load(path))


def _voxels(image: nib.Nifti1Image, path: Path) -> npt.NDArray[np.generic]:
    voxels = _readable(path, lambda: np.asanyarray(image.dataobj)).T
    if not np.isfinite(voxels).all():
        raise DataError(f"{path}: has voxels that are not finite; export it again without NaN or infinity.")
    return voxels


def _readable(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns, its many ways to fail on a broken file turned into one."""
    try:
        return read()
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: cannot be read, it is truncated or no NIfTI file ({reason}); copy it again."
        ) from error


def _known_labels(voxels: npt.NDArray[np.generic], label_map: tuple[int, ...], path: Path) -> Labels:
    """Labels translated to ours by `label_map`, whose n-th entry is what the file's n means."""
    codes = np.ascontiguousarray(voxels).astype(np.int16)
    if (codes != voxels).any() or codes.min() < 0 or codes.max() >= len(label_map):
        strange = sorted(set(np.unique(voxels).tolist()) - set(range(len(label_map))))
        raise DataError(
            f"{path}: unknown label {strange[0]:g}; allowed are 0 to {len(label_map) - 1}, relabel or remove it."
        )
    return np.array(label_map, np.uint8)[codes]
