"""A made-up short-axis cine study of the heart, written to disk in the raw ACDC and M&Ms layouts.

It lets the example run, through the very same readers, where no real data are at hand. Anatomy comes from `anatomy`;
this module is the scanner and the filing clerk.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import fft

from cardiac.data.anatomy import (
    GROUPS,
    Array,
    Codes,
    Heart,
    Plane,
    Tissue,
    Torso,
    cut,
    draw_heart,
    draw_torso,
    paint_chest,
    paint_heart,
    paint_slice,
    texture,
)
from cardiac.data.cache import publish, user_cache

VERSION = 1
"""Goes into the cache key: raise it with every change that alters a voxel."""

ACDC_PATIENTS = (
    *("073", "061", "012", "053", "046", "044", "022", "092", "004", "001"),  # training draw 0
    *("011", "071", "062", "095", "082"),  # validation
    *("007", "008", "027", "028", "047", "048", "067", "068"),  # test
)
CONTRACTION = (0.0, 0.55, 1.0)
"""How far each phase of the cine has contracted: end diastole comes first, end systole last."""

_UP = 2  # tissue is painted on a grid twice as fine as the image's, then averaged: partial volume
_LAYERS = (-2.7, 0.0, 2.7)  # where a slice's thickness is sampled, in mm from its middle
_CSV = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


class PhantomPaths(NamedTuple):
    """Roots of the two data sets, as `read_acdc` and `read_mnms` take them."""

    acdc: Path
    mnms: Path


@dataclass(frozen=True)
class Scanner:
    """How one make of scanner turns tissue into grey values.

    Attributes:
        blood, myocardium, fat: Signal of these tissues; the others' follow from them.
        shading: How fast the sensitivity of the front coil falls off.
        resolution: Share of k-space that is sampled.
        noise: Standard deviation of the noise in each of the two receiver channels.
        spacing: Limits of the in-plane voxel size in mm.
        scale: Grey value of signal 1.
    """

    name: str
    centre: int
    blood: float
    myocardium: float
    fat: float
    shading: float
    resolution: float
    noise: float
    spacing: tuple[float, float]
    scale: float


SCANNERS = {
    "ACDC": Scanner("Siemens", 1, 0.98, 0.25, 0.85, 2.0, 0.72, 0.012, (1.37, 1.6), 420),
    "A": Scanner("Siemens", 1, 0.85, 0.28, 0.95, 3.0, 0.66, 0.016, (1.3, 1.45), 600),
    "B": Scanner("Philips", 2, 0.72, 0.34, 0.55, 0.8, 0.52, 0.014, (1.3, 1.4), 900),
    "C": Scanner("GE", 4, 0.80, 0.22, 1.10, 4.0, 0.9, 0.022, (1.4, 1.6), 2000),
}


class Study(NamedTuple):
    """A cine study: images and labels [T, D, H, W], labels LV=1, MYO=2, RV=3, voxels in mm (z, y, x)."""

    images: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    group: str


def cached_phantom() -> PhantomPaths:
    """Return the phantom in the user's cache folder, which is written there if need be."""
    cache = user_cache()
    print(f"No data given: a phantom of ACDC and M&Ms is used, from {cache}.")
    return make_phantom(cache)


def make_phantom(
    folder: str | os.PathLike[str],
    *,
    acdc_patients: Sequence[str] = ACDC_PATIENTS,
    mnms_subjects: int = 6,
    seed: int = 0,
) -> PhantomPaths:
    """Write the phantom below a cache folder, or find it there, and return where its two data sets are.

    The same arguments give the same voxels. Each set of arguments has a folder of its own, which is built under another
    name and renamed when whole: an interrupted run leaves nothing that looks finished, and two runs may start at once.

    Args:
        folder: The cache folder; created if need be.
        acdc_patients: ACDC numbers, three digits each. A patient's anatomy depends on the number and the seed only.
        mnms_subjects: Labelled M&Ms subjects, of vendors A and B in turn; one of vendor C without labels is added.
        seed: Another seed, other hearts.
    """
    patients = sorted(set(acdc_patients))
    scanners = {key: asdict(scanner) for key, scanner in SCANNERS.items()}
    recipe = {"version": VERSION, "acdc": patients, "mnms": mnms_subjects, "seed": seed, "scanners": scanners}
    text = json.dumps(recipe, indent=1)
    target = Path(folder) / f"phantom-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".phantom-", dir=target.parent) as scratch:
            built = Path(scratch) / "phantom"
            for patient in patients:
                _write_acdc(built / "acdc", patient, seed)
            _write_mnms(built / "mnms", mnms_subjects, seed)
            (built / "recipe.json").write_text(text)
            publish(built, target)
    return PhantomPaths(target / "acdc", target / "mnms")


def _write_acdc(root: Path, patient: str, seed: int) -> None:
    group = ("DCM", "HCM", "MINF", "NOR", "RV")[(int(patient) - 1) // 20 % 5]
    study = make_study(np.random.default_rng([seed, int(patient)]), SCANNERS["ACDC"], group)
    folder = root / "training" / f"patient{patient}"
    folder.mkdir(parents=True)
    end_systole = len(CONTRACTION)
    info = {"ED": 1, "ES": end_systole, "Group": study.group, "Height": 170.0, "NbFrame": end_systole, "Weight": 70.0}
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))
    _save(folder / f"patient{patient}_4d.nii.gz", study.images, study.spacing)
    acdc_codes = np.array([0, 3, 2, 1], np.uint8)
    for frame in (1, end_systole):
        stem = f"patient{patient}_frame{frame:02d}"
        _save(folder / f"{stem}.nii.gz", study.images[frame - 1], study.spacing)
        _save(folder / f"{stem}_gt.nii.gz", acdc_codes[study.labels[frame - 1]], study.spacing)


def _write_mnms(root: Path, subjects: int, seed: int) -> None:
    root.mkdir(parents=True)
    rows = []
    for index in range(subjects + 1):
        labelled = index < subjects
        vendor = "AB"[index % 2] if labelled else "C"
        rng = np.random.default_rng([seed, 1000 + index])
        code = "".join(rng.choice(list(symbols)) for symbols in ("ABCDEFGH", "0123456789") * 3)
        study = make_study(rng, SCANNERS[vendor], str(rng.choice(list(GROUPS))))
        folder = root / "Training" / ("Labeled" if labelled else "Unlabeled") / code
        folder.mkdir(parents=True)
        _save(folder / f"{code}_sa.nii.gz", study.images, study.spacing)
        if labelled:
            study.labels[1:-1] = 0  # only end diastole and end systole are labelled
            _save(folder / f"{code}_sa_gt.nii.gz", study.labels, study.spacing)
        scanner = SCANNERS[vendor]
        rows.append([code, scanner.name, vendor, scanner.centre, 0, len(CONTRACTION) - 1, study.group])
    with open(root / _CSV, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Pathology"])
        writer.writerows(rows)


def _save(path: Path, volume: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Write [D, H, W] or [T, D, H, W] as NIfTI, whose axes are x, y, z and time."""
    z, y, x = spacing
    nib.save(nib.Nifti1Image(volume.T, np.diag([-x, -y, z, 1.0])), path)


class _Person(NamedTuple):
    heart: Heart
    torso: Torso
    chest: Codes
    depth: Array


def make_study(rng: np.random.Generator, scanner: Scanner, group: str) -> Study:
    """Draw a person of one of ACDC's groups and scan them."""
    heart, torso = draw_heart(rng, group), draw_torso(rng)
    pixel, gap = float(rng.uniform(*scanner.spacing)), float(rng.choice([8.0, 10.0]))
    shape = (256, int(rng.choice([208, 216, 224])))
    first = -heart.length / 2 - rng.uniform(-2, 6)
    heights = first + gap * np.arange(np.clip((heart.length / 2 - first) // gap + 1, 8, 12))
    plane = _fine_plane(rng, shape, pixel, tilt=rng.normal(0, 0.22))
    person = _Person(heart, torso, *paint_chest(torso, plane))
    signal = np.empty((len(CONTRACTION), len(heights), *shape), np.float32)
    labels = np.empty(signal.shape, np.uint8)
    for index, z in enumerate(heights):
        breath = rng.normal(0, 1.0, 2).astype(np.float32)  # mm the heart is off: no two breath-holds are alike
        signal[:, index] = _cine(scanner, person, _move_textures(plane, index), breath, z)
        for phase, contraction in enumerate(CONTRACTION):
            labels[phase, index] = _label(heart, _shift(plane, breath), z, contraction)
    images = _acquire(rng, scanner, signal * _coil(rng, scanner, plane))
    return Study(np.rint(images * scanner.scale).astype(np.int16), labels, (gap, pixel, pixel), group)


def _cine(scanner: Scanner, person: _Person, plane: Plane, breath: Array, z: float) -> Array:
    """Signal of one slice in every phase, [T, H, W]; the heart is averaged over the thickness of the slice."""
    codes = person.chest.copy()
    room = paint_slice(codes, person.torso, plane, person.depth, z)
    frames = np.repeat(_mix(scanner, codes, plane)[None], len(CONTRACTION), axis=0)
    window, image_window = _around(person.heart, plane)
    near, room, codes = _shift(plane.window(window), breath), room[window], codes[window]
    for frame, contraction in zip(frames, CONTRACTION, strict=True):
        layers = []
        for offset in _LAYERS:
            layer = codes.copy()
            paint_heart(layer, person.heart, near, room, z + offset, contraction)
            layers.append(_mix(scanner, layer, near))
        frame[(slice(None), *image_window)] = np.mean(layers, axis=0)
    return np.abs(frames[:, 0] - frames[:, 1])  # fat and water are in opposite phase: their borders turn black


def _mix(scanner: Scanner, codes: Codes, plane: Plane) -> Array:
    """Water and fat signal [2, H, W] of the voxels that the painted points make up."""
    return _pool(_brightness(scanner)[:, codes] * (1 + 0.06 * plane.coarse + 0.06 * plane.fine))


def _brightness(scanner: Scanner) -> Array:
    """Signal of the water (row 0) and of the fat (row 1) in each tissue."""
    signal = np.zeros((2, len(Tissue)), np.float32)
    signal[1, Tissue.FAT] = scanner.fat
    signal[0, Tissue.MUSCLE] = 0.85 * scanner.myocardium
    signal[0, Tissue.BONE] = 0.05
    signal[0, Tissue.MARROW] = 0.2
    signal[0, Tissue.LUNG] = 0.06
    signal[0, Tissue.VESSEL] = 0.75 * scanner.blood
    signal[0, Tissue.LIVER] = 1.35 * scanner.myocardium
    signal[0, Tissue.SPLEEN] = 1.6 * scanner.myocardium
    signal[0, Tissue.STOMACH] = 0.6 * scanner.myocardium
    signal[0, Tissue.BLOOD] = scanner.blood
    signal[0, Tissue.MYOCARDIUM] = scanner.myocardium
    signal[0, Tissue.FLUID] = 1.2 * scanner.blood
    return signal


def _coil(rng: np.random.Generator, scanner: Scanner, plane: Plane) -> Array:
    """Sensitivity of the receive coils: strong at the chest wall, weaker in the back, fading between."""
    x, y = _pool(plane.x), _pool(plane.y)
    (front_x, front_y), (back_x, back_y) = rng.normal([(-90, -60), (50, 140)], 20)
    front = 1 / (1 + scanner.shading * np.hypot(x - front_x, y - front_y) / 300) ** 2
    back = 1 / (1 + np.hypot(x - back_x, y - back_y) / 60)
    return front + 0.25 * back


def _acquire(rng: np.random.Generator, scanner: Scanner, signal: Array) -> Array:
    """Sample k-space as far as the scanner's resolution goes, with complex noise, and take the magnitude."""
    height, width = signal.shape[-2:]
    taper = np.outer(_filter(height, scanner.resolution), _filter(width, min(1.0, 1.2 * scanner.resolution)))
    noise = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(scanner.noise)
    return np.abs(fft.ifft2(fft.fft2(signal + noise[0] + 1j * noise[1]) * taper))


def _filter(n: int, share: float) -> Array:
    """A k-space window: falls smoothly to 0 at `share` of the highest frequency."""
    frequency = np.abs(fft.fftfreq(n)) * 2 / share
    return (np.cos(np.pi / 2 * np.minimum(frequency, 1)) ** 0.6).astype(np.float32)


def _label(heart: Heart, plane: Plane, z: float, contraction: float) -> Codes:
    """LV=1, MYO=2, RV=3 where the slice's middle plane cuts the ventricles; nothing above the valves."""
    section = cut(heart, Plane(*(_pool(field) for field in plane)), z, contraction)
    labels = np.zeros(section.left.shape, np.uint8)
    if 0 <= section.height < 1:
        for value, mask in enumerate((section.left, section.wall, section.right), start=1):
            labels[mask] = value
    return labels


def _fine_plane(rng: np.random.Generator, shape: tuple[int, int], pixel: float, tilt: float) -> Plane:
    fine_shape = shape[0] * _UP, shape[1] * _UP
    step = pixel / _UP
    y, x = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * step for n in fine_shape)
    x, y = np.meshgrid(x, y)
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    textures = (texture(rng, fine_shape, grain / step) for grain in (4.0, 1.1))
    return Plane(cos * x + sin * y, cos * y - sin * x, *textures)


def _shift(plane: Plane, by: Array) -> Plane:
    return plane._replace(x=plane.x - by[0], y=plane.y - by[1])


def _around(heart: Heart, plane: Plane) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The rectangle that the heart lies in, in indices of the fine grid and of the image."""
    x, y, half = heart.frame
    inside = (np.abs(plane.x - x) < half) & (np.abs(plane.y - y) < half)
    rows, columns = (np.flatnonzero(inside.any(axis)) // _UP for axis in (1, 0))
    image = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    fine = slice(_UP * image[0].start, _UP * image[0].stop), slice(_UP * image[1].start, _UP * image[1].stop)
    return fine, image


def _move_textures(plane: Plane, index: int) -> Plane:
    """The plane with its textures moved along, so that no two slices share them."""
    shift = (37 * index, 53 * index)
    return plane._replace(coarse=np.roll(plane.coarse, shift, (0, 1)), fine=np.roll(plane.fine, shift, (0, 1)))


def _pool(array: Array) -> Array:
    """Average blocks of `_UP`² points of [..., H, W] into one voxel each."""
    total = sum(array[..., row::_UP, column::_UP] for row in range(_UP) for column in range(_UP))
    return np.asarray(total / np.float32(_UP**2))
