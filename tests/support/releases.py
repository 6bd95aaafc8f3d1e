"""Releases of cardiac MR on disk, of the smallest volumes, and the plainest way to read them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from cardiac.data.preprocess import clip_percentiles, pad_and_crop, resample_image, resample_labels, rescale_slices

SPACING = (1.5, 1.4, 9.0)
PLANE, DEPTH, MOMENTS = (14, 12), 2, 4
ED, ES = 1, 3
"""The labelled moments; ACDC counts from 1, M&Ms from 0."""
TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"

Frames = dict[tuple[str, str], tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]]
"""Image and labels by patient and phase."""


def heart(seed: int, *moments: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Make an image [x, y, z, ...] of noise and shades, and its labels: rings around the middle."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in PLANE), indexing="ij")
    distance = np.hypot(x + random.uniform(-1, 1), y) / 5
    plane = np.select([distance < 0.4, distance < 0.7, distance < 1], [1, 2, 3], 0).astype(np.uint8)
    labels = np.broadcast_to(plane.reshape(*PLANE, 1, *(1 for _ in moments)), (*PLANE, DEPTH, *moments)).copy()
    return (labels * 200 + random.integers(0, 300, labels.shape)).astype(np.int16), labels


def save(path: Path, voxels: npt.NDArray[np.generic], spacing: Sequence[float] = SPACING) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)


def write_acdc(root: Path, patients: Sequence[str] = ("001", "002", "003"), suffix: str = ".nii.gz") -> Path:
    """Write patients as ACDC is released; return the folder."""
    for number, patient in enumerate(patients):
        stem = root / "training" / f"patient{patient}" / f"patient{patient}"
        for moment in (ED, ES):
            image, labels = heart(10 * number + moment)
            save(Path(f"{stem}_frame{moment:02}{suffix}"), image)
            save(Path(f"{stem}_frame{moment:02}_gt{suffix}"), labels)
        (stem.parent / "Info.cfg").write_text(f"ED: {ED}\nES: {ES}\nGroup: NOR\nHeight: 184.0\nNbFrame: 30\n")
    return root


def write_mnms(root: Path, subjects: Sequence[str] = ("A1B2C3", "D4E5F6"), suffix: str = ".nii.gz") -> Path:
    """Write subjects as M&Ms is released; return the folder."""
    rows = [["External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age"]]
    for number, subject in enumerate(subjects):
        image, labels = heart(50 + number, MOMENTS)
        labels[..., [moment for moment in range(MOMENTS) if moment not in (ED, ES)]] = 0
        save(root / "Training" / "Labeled" / subject / f"{subject}_sa{suffix}", image, SPACING)
        save(root / "Training" / "Labeled" / subject / f"{subject}_sa_gt{suffix}", labels, SPACING)
        rows.append([subject, "Siemens", "A", "1", str(ED), str(ES), "50"])
    with open(root / TABLE, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def plain_acdc(root: Path, size: int) -> Frames:
    """Read packed ACDC as nibabel does, trusting everything."""
    found: Frames = {}
    for folder in sorted((root / "training").iterdir()):
        lines = (folder / "Info.cfg").read_text(errors="replace").splitlines()
        said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        for phase in ("ED", "ES"):
            image, labels, spacing = _pair(folder / f"{folder.name}_frame{int(float(said[phase])):02}")
            ours = np.array([0, 3, 2, 1], np.uint8)[np.rint(labels).astype(int)]
            found[folder.name.removeprefix("patient"), phase] = _prepared(image, ours, spacing, size)
    return found


def plain_mnms(root: Path, size: int) -> Frames:
    """Read packed M&Ms as nibabel does, trusting everything."""
    found: Frames = {}
    with open(root / TABLE, newline="", errors="replace") as file:
        table = {row["External code"]: row for row in csv.DictReader(file)}
    for folder in sorted((root / "Training" / "Labeled").iterdir()):
        images, labels, spacing = _pair(folder / f"{folder.name}_sa")
        for phase in ("ED", "ES"):
            moment = int(float(table[folder.name][phase]))
            ours = np.rint(labels[moment]).astype(np.uint8)
            found[folder.name, phase] = _prepared(images[moment], ours, spacing, size)
    return found


def _pair(stem: Path) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic], tuple[float, float]]:
    image, labels = nib.load(f"{stem}.nii.gz"), nib.load(f"{stem}_gt.nii.gz")
    x, y = (float(step) for step in image.header.get_zooms()[:2])
    return np.asarray(image.dataobj).T, np.asarray(labels.dataobj).T, (y, x)


def _prepared(
    image: npt.NDArray[np.generic], labels: npt.NDArray[np.uint8], spacing: tuple[float, float], size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    resampled = resample_image(clip_percentiles(image, (2, 98)), spacing)
    return rescale_slices(pad_and_crop(resampled, size)), pad_and_crop(resample_labels(labels, spacing), size)
