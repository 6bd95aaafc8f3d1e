"""Patients on disk, so small that a whole run over them takes seconds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import nibabel as nib
import numpy as np


def write_patient(folder: Path, seed: int, structures: Collection[int] = (1, 2, 3)) -> None:
    """Write a patient in the preprocessed layout: bright discs in each other on noise."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    y, x = np.mgrid[:40, :40] - 19.5
    for phase, radius in (("ED", 11), ("ES", 8)):
        distance = np.hypot(y, x + random.uniform(-3, 3)) / radius
        plane = np.select([distance < 0.4, distance < 0.7, distance < 1], [1, 2, 3], 0)
        plane[~np.isin(plane, [*structures])] = 0
        labels = np.repeat(plane[None], 3, 0).astype(np.uint8)
        image = (labels / 3 + random.uniform(0, 0.3, labels.shape)).astype(np.float32)
        affine = np.diag([1.36719, 1.36719, 10, 1])
        nib.save(nib.Nifti1Image(image.T, affine), folder / f"{phase}_img.nii.gz")
        nib.save(nib.Nifti1Image(labels.T, affine), folder / f"{phase}_seg.nii.gz")
