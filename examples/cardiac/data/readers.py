"""Readers of short-axis cardiac MR: the raw ACDC and M&Ms releases, and a plain preprocessed layout.

All of them return a list of `Frame`, with the axes [slice, row, column] and the labels LV=1, MYO=2, RV=3. The axes are
the file's, reversed: headers are not used to turn volumes, since preprocessed copies often lose the orientation.
"""

from __future__ import annotations

import csv
import io
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cardiac.data.nifti import MAX_FRAME_VOXELS, Nifti, Unfit, blocks_of, read_header
from cardiac.data.preprocess import (
    PADDED,
    SPACING,
    Labels,
    Volume,
    clip_percentiles,
    halve_image,
    halve_labels,
    pad_and_crop,
    resample_image,
    resample_labels,
    resampled_size,
    rescale_slices,
)
from study.data.frame import DataError
from study.data.frame import Frame as Case
from study.data.plain_files import is_there, read_text

STRUCTURES = ("LV", "MYO", "RV")
"""Label 1, 2 and 3."""

PHASES = ("ED", "ES")
MNMS_SPLITS = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")

_ACDC_FOLDERS = (".", "training", "testing", "database/training", "database/testing")
_ACDC_LABELS = (0, 3, 2, 1)  # the release has RV=1, MYO=2, LV=3
_OUR_LABELS = (0, 1, 2, 3)
_MNMS_COLUMNS = ("External code", "Vendor", "Centre", "ED", "ES")
_SUFFIXES = (".nii.gz", ".nii")  # the release's first; users unpack it
_NO_DATA = ("lost+found",)  # of a disk's root, which nobody may enter
_LABEL_ROUNDING = 1e-3 + 1e-6  # and what float32 makes of that
_MOST_LABEL_ROUNDING = 1e-2  # of integers that are scaled by as little as 3 / 255


@dataclass(frozen=True, eq=False)
class Frame(Case):
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

    classes: ClassVar[tuple[str, ...]] = STRUCTURES

    structures: tuple[str, ...] = STRUCTURES


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
        for phase, number in _read_info(folder / "Info.cfg").items():
            stem = f"patient{patient}_frame{number:02d}"
            stems = stem, f"{stem}_gt"
            if not any(_exists(_volume(folder, one)) for one in stems):
                raise DataError(
                    f"{folder / 'Info.cfg'}: {phase} is frame {number}, which has no files; correct it, or copy "
                    f"{stem}.nii.gz and {stem}_gt.nii.gz from the release."
                )
            image, labels, spacing = _read_pair(folder, stems, _ACDC_LABELS)
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
        stems = f"{code}_sa", f"{code}_sa_gt"
        images, labels, spacing = _read_pair(folder, stems, _OUR_LABELS, dimensions=4)
        group = {"vendor": row["Vendor"], "centre": row["Centre"]}
        times = _labelled_times(row, labels, _volume(folder, stems[1]), table_path)
        for phase, time in times.items():
            image = clip_percentiles(images[time], percentiles)
            frames.append(_frame(code, phase, image, labels[time], spacing, size, group=group))
    return frames


def read_preprocessed(
    root: str | os.PathLike[str], *, patients: Sequence[str] | None = None, size: int = 192
) -> list[Frame]:
    """Read `<patient>/{ED,ES}_{img,seg}.nii.gz`, or `.nii`: intensities as they are, labels LV=1, MYO=2, RV=3.

    A patient may have one phase only. `structures` are those that occur anywhere in what is read.

    Args:
        root: The folder with one folder per patient.
        patients: Folder names; None reads all. Who is not there is left out.
        size: Side of the centre crop in voxels of `SPACING`.

    Raises:
        DataError: A file or folder is missing, unreadable or contradicts another, or none of `patients` is there.
    """
    root = _existing(root)
    volumes = [f"E[DS]_*{suffix}" for suffix in _SUFFIXES]
    folders = _collect(folder for folder in _subfolders(root, "*") if _names(folder, *volumes))
    frames = []
    for patient, folder in _select(folders, patients, root).items():
        for phase in PHASES:
            stems = f"{phase}_img", f"{phase}_seg"
            if any(_exists(_volume(folder, stem)) for stem in stems):
                image, labels, spacing = _read_pair(folder, stems, _OUR_LABELS)
                frames.append(_frame(patient, phase, image.astype(np.float32), labels, spacing, size))
    structures = tuple(
        name
        for label, name in enumerate(STRUCTURES, start=1)
        if any(f.cropped[name] or (f.labels == label).any() for f in frames)
    )
    return [replace(f, structures=structures, cropped={s: f.cropped[s] for s in structures}) for f in frames]


def patients_below(root: str | os.PathLike[str]) -> set[str]:
    """Return who has volumes anywhere below a folder, in whichever layout, without reading any.

    Raises:
        DataError: the folder, or one below it, is missing or cannot be looked into.
    """

    def refuse(error: OSError) -> None:
        raise error

    root, found = _existing(root), set()
    with _reading(root):
        for place, folders, files in os.walk(root, onerror=refuse):
            folders[:] = [name for name in folders if name not in _NO_DATA]
            if any(name.endswith(_SUFFIXES) for name in (*files, *folders)):
                found.add(Path(place).name.removeprefix("patient"))
    return found


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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the many ways in which reading a file or folder fails into one."""
    try:
        yield
    except Unfit as error:
        raise DataError(f"{path}: {error}") from None
    except PermissionError as error:
        place = error.filename or path
        raise DataError(f"{place}: cannot be read ({error.strerror}); allow it, or copy it again.") from None
    except OSError as error:
        place, reason = error.filename or path, error.strerror or str(error)
        raise DataError(f"{place}: cannot be read ({reason}); copy it again.") from None
    except MemoryError:
        raise DataError(f"{path}: needs more memory than there is; free some, or crop it.") from None


def _existing(root: str | os.PathLike[str]) -> Path:
    root = Path(root)
    with _reading(root):
        if not (is_there(root) and root.is_dir()):
            raise DataError(f"{root}: no such folder; pass the folder that holds the data set.")
    return root


def _names(folder: Path, *patterns: str) -> list[str]:
    """What a folder holds by these names; nothing if it is none."""
    with _reading(folder):
        if not (is_there(folder) and folder.is_dir()):
            return []
        return [name for name in sorted(os.listdir(folder)) if any(fnmatchcase(name, one) for one in patterns)]


def _subfolders(folder: Path, pattern: str = "[!.]*") -> list[Path]:
    paths = [folder / name for name in _names(folder, pattern) if name not in _NO_DATA]
    return [path for path in paths if os.path.isdir(path)]


def _exists(path: Path) -> bool:
    with _reading(path):
        return is_there(path)


def _volume(folder: Path, stem: str) -> Path:
    """A volume's file, packed or not; the packed one's path if there is neither."""
    paths = [folder / f"{stem}{suffix}" for suffix in _SUFFIXES]
    there = [path for path in paths if _exists(path)]
    if len(there) > 1:
        _see_that_they_are_one(*there)
    return there[0] if there else paths[0]


def _see_that_they_are_one(packed: Path, unpacked: Path) -> None:
    """Refuse a file beside which an unpacked one of other content lies: which of them is meant, nobody says."""
    if any(ours != theirs for ours, theirs in zip_longest(_blocks(packed), _blocks(unpacked))):
        raise DataError(f"{packed}: {unpacked.name} lies beside it, and differs; remove the one that is not meant.")


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


def _read_info(path: Path) -> dict[str, int]:
    """Which frame is ED and which ES, from 1 on."""
    if not _exists(path):
        raise DataError(f"{path}: missing; copy it from the ACDC release, it says which frames are ED and ES.")
    said: dict[str, str] = {}
    for key, colon, value in (map(str.strip, line.partition(":")) for line in _text(path).split("\n")):
        if colon and key in PHASES and said.setdefault(key, value) != value:
            raise DataError(f"{path}: {key} is {said[key]!r} and {value!r}; copy the file from the release again.")
    frames = {phase: _number(said.get(phase), phase, path) for phase in PHASES}
    if frames["ED"] == frames["ES"]:
        raise DataError(f"{path}: ED and ES are both frame {frames['ED']}; copy the file from the release again.")
    return frames


def _text(path: Path) -> str:
    with _reading(path):
        try:
            return read_text(path)
        except ValueError as error:
            raise DataError(f"{path}: is no text file ({error}); copy it again.") from None


def _number(value: str | None, name: str, path: Path) -> int:
    number = re.fullmatch(r"([0-9]{1,6})(\.0*)?", (value or "").strip())  # spreadsheets write 7 as 7.0
    if number is None:
        raise DataError(f"{path}: {name} must be a frame number, got {value!r}; copy the file from the release again.")
    return int(number[1])


def _read_table(root: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    """The newest of M&Ms' information tables, and its rows by external code."""
    tables = _names(root, "*M&Ms*.csv")
    if not tables:
        raise DataError(f"{root}: no *M&Ms*.csv; copy the release's information table here, it names ED and ES.")
    path = root / tables[-1]
    try:
        text = _text(path)
        comma = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets write what the user's country does
        head, *lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=comma)) or [[]]
    except csv.Error as error:
        raise DataError(f"{path}: is no CSV ({error}); copy the table from the release again.") from None
    head = [name.strip() for name in head]
    for wanted, fault in ((0, "no column"), (2, "two columns called")):
        wrong = [column for column in _MNMS_COLUMNS if min(head.count(column), 2) == wanted]
        if wrong:
            raise DataError(f"{path}: {fault} {', '.join(wrong)}; copy the table from the release again.")
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        filled = dict(zip(head, [*line, *[""] * len(head)], strict=False))
        row = {column: filled[column].strip() for column in _MNMS_COLUMNS}
        code = row["External code"]
        if rows.setdefault(code, row) != row and code:
            raise DataError(f"{path}: two rows for subject {code}, and they differ; remove the wrong one.")
    return path, rows


def _labelled_times(row: Mapping[str, str], labels: Labels, path: Path, table: Path) -> dict[str, int]:
    """Which frames of a 4-D volume the table names (it counts from 0), provided that they have labels."""
    times = {phase: _number(row[phase], f"{phase} of {row['External code']}", table) for phase in PHASES}
    labelled = np.flatnonzero(labels.any(axis=(1, 2, 3))).tolist()
    for phase, time in times.items():
        if time not in labelled:
            raise DataError(
                f"{path}: frame {time} has no labels, frames {labelled} do; correct {phase} in {table.name}."
            )
    if times["ED"] == times["ES"] and len(labelled) > 1:
        raise DataError(f"{path}: frames {labelled} have labels, ED and ES are both {time}; correct {table.name}.")
    return times


def _read_pair(
    folder: Path, stems: tuple[str, str], label_map: tuple[int, ...], *, dimensions: int = 3
) -> tuple[npt.NDArray[np.generic], Labels, tuple[float, float, float]]:
    """An image and its labels with the axes reversed to [(time,) slice, row, column], and the voxel size (z, y, x)."""
    paths = tuple(_volume(folder, stem) for stem in stems)
    for path, other in (paths, reversed(paths)):
        if not _exists(path):
            raise DataError(f"{path}: missing, {other.name} needs it; copy it from the data set again.")
    image, labels = (_header(path) for path in paths)
    _see_that_they_fit(image, labels, dimensions)
    _see_that_it_stays_small(image)
    x, y, z = image.spacing
    return _voxels(image), _known_labels(labels, label_map), (z, y, x)


def _see_that_they_fit(image: Nifti, labels: Nifti, dimensions: int) -> None:
    """Refuse two files of other voxels; of their placements one each may be wrong, as programs mend but one."""
    if image.shape != labels.shape or len(image.shape) != dimensions:
        raise DataError(
            f"{labels.path}: shape {labels.shape}, image {image.shape}; both must have the same {dimensions} axes, "
            "copy the two files from the same release."
        )
    if not np.allclose(image.spacing, labels.spacing, atol=1e-3):
        ours, theirs = (" x ".join(f"{step:g}" for step in file.spacing) for file in (labels, image))
        raise DataError(
            f"{labels.path}: voxel size (pixdim) is {ours} mm, {image.path.name} has {theirs} mm; "
            "copy the two files from the same release."
        )
    pairs = [(ours, theirs) for ours in labels.placements for theirs in image.placements]
    if pairs and not any(
        np.allclose(labels.placements[ours], image.placements[theirs], atol=1e-2) for ours, theirs in pairs
    ):
        ours, theirs = next((pair for pair in pairs if pair[0] == pair[1]), pairs[0])
        apart = np.abs(labels.placements[ours] - image.placements[theirs])
        row, column = np.unravel_index(apart.argmax(), apart.shape)
        raise DataError(
            f"{labels.path}: {ours}[{row}, {column}] is {labels.placements[ours][row, column]:g}, "
            f"{image.path.name} has {image.placements[theirs][row, column]:g} in its {theirs}: one of them lies "
            "elsewhere; copy the two files from the same release."
        )


def _see_that_it_stays_small(image: Nifti) -> None:
    """Refuse what grows beyond measure by resampling and padding."""
    columns, rows = (
        max(resampled_size(n, step), PADDED) for n, step in zip(image.shape, image.spacing[:2], strict=False)
    )
    if columns * rows * image.shape[2] > MAX_FRAME_VOXELS:
        raise DataError(
            f"{image.path}: would have {columns} x {rows} x {image.shape[2]} voxels at {SPACING} mm, more than "
            f"{MAX_FRAME_VOXELS}; crop it, or correct the voxel size (pixdim) in its header."
        )


def _header(path: Path) -> Nifti:
    with _reading_nifti(path):
        return read_header(path)


def _blocks(path: Path) -> Iterator[bytes]:
    with _reading_nifti(path):
        yield from blocks_of(path)


def _voxels(file: Nifti) -> npt.NDArray[np.generic]:
    with _reading_nifti(file.path):
        return file.voxels().T


@contextmanager
def _reading_nifti(path: Path) -> Iterator[None]:
    with _reading(path):
        try:
            yield
        except (EOFError, ValueError, zlib.error) as error:
            raise DataError(
                f"{path}: cannot be read, it is truncated or no NIfTI file ({error}); copy it again."
            ) from error


def _known_labels(file: Nifti, label_map: tuple[int, ...]) -> Labels:
    """Labels translated to ours by `label_map`, whose n-th entry is what the file's n means.

    Programs that save labels as fractions, or as scaled integers, leave them a rounding away from what they were.
    """
    voxels = np.ascontiguousarray(_voxels(file))
    whole = voxels if voxels.dtype.kind in "iu" else np.rint(voxels)
    rounding = max(_LABEL_ROUNDING, min(file.step / 2, _MOST_LABEL_ROUNDING))
    strange = (whole < 0) | (whole >= len(label_map))
    if whole is not voxels:
        strange |= np.abs(voxels - whole) > rounding
    if strange.any():
        raise DataError(
            f"{file.path}: unknown label {voxels[strange].min():g}; allowed are 0 to {len(label_map) - 1}, "
            "relabel or remove it."
        )
    return np.array(label_map, np.uint8)[whole.astype(np.uint8)]
