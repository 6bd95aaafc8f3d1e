from __future__ import annotations

import csv
import gzip
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from cardiac.data.preprocess import SPACING, pad_and_crop, resample_image, resample_labels
from cardiac.data.readers import (
    DataError,
    Frame,
    count_cropped,
    halve,
    patients_below,
    read_acdc,
    read_mnms,
    read_preprocessed,
)
from tests.support.damage import NO_FILES, in_place_of

SHAPE = (20, 24, 3)  # x, y, z
MNMS_CSV = "201014_M&Ms_Dataset_Information_-_opendataset.csv"


def save(path: Path, voxels: np.ndarray, spacing: tuple[float, ...] = (1.5, 1.4, 9.0), origin: float = 0.0) -> None:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def volume(seed: int, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16)


def label_map(seed: int, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


def write_acdc_patient(folder: Path, seed: int = 0) -> None:
    name = folder.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: NOR\nNbFrame: 30\n")
    for frame in (1, 12):
        save(folder / f"{name}_frame{frame:02d}.nii.gz", volume(seed + frame))
        save(folder / f"{name}_frame{frame:02d}_gt.nii.gz", label_map(seed + frame))


def write_mnms_rows(
    root: Path,
    rows: Sequence[Sequence[object]],
    columns: Sequence[str] = ("", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age"),
) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / MNMS_CSV, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_mnms_subject(
    root: Path, code: str, split: str = "Training/Labeled", labelled: Sequence[int] = (1, 3)
) -> None:
    shape = (*SHAPE, 5)
    labels = label_map(7, shape)
    labels[..., [t for t in range(5) if t not in labelled]] = 0
    save(root / split / code / f"{code}_sa.nii.gz", volume(3, shape), (1.5, 1.4, 9.0))
    if labelled:
        save(root / split / code / f"{code}_sa_gt.nii.gz", labels, (1.5, 1.4, 9.0))


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    for number in ("001", "002"):
        write_acdc_patient(tmp_path / "training" / f"patient{number}", seed=int(number))
    return tmp_path


@pytest.fixture
def mnms(tmp_path: Path) -> Path:
    write_mnms_rows(
        tmp_path,
        [
            ["0", "A1B2C3", "Siemens", "A", "1", "1", "3", "50"],
            ["1", "D4E5F6", "Philips", "B", "2", "1", "3", "60"],
            ["2", "G7H8I9", "GE", "C", "4", "0", "2", "70"],
        ],
    )
    write_mnms_subject(tmp_path, "A1B2C3")
    write_mnms_subject(tmp_path, "D4E5F6")
    write_mnms_subject(tmp_path, "G7H8I9", "Training/Unlabeled", labelled=())
    return tmp_path


@pytest.fixture
def preprocessed(tmp_path: Path) -> Path:
    for patient in ("007", "SC-HF-I-1"):
        for kind, voxels in (("img", np.float32(volume(1) / 900)), ("seg", np.minimum(label_map(1), 2))):
            save(tmp_path / patient / f"ED_{kind}.nii.gz", voxels)
    return tmp_path


# Reading


@pytest.mark.parametrize("layout", ["training", "testing", "database/training", "database/testing", "."])
def test_acdc_is_found_in_every_folder_layout(tmp_path: Path, layout: str) -> None:
    write_acdc_patient(tmp_path / layout / "patient101")
    frames = read_acdc(tmp_path)
    assert [(frame.patient, frame.phase) for frame in frames] == [("101", "ED"), ("101", "ES")]


def test_acdc_frames_are_what_they_promise(acdc: Path) -> None:
    frames = read_acdc(acdc, size=32)
    assert [(f.patient, f.phase) for f in frames] == [("001", "ED"), ("001", "ES"), ("002", "ED"), ("002", "ES")]
    for frame in frames:
        assert frame.image.shape == frame.labels.shape == (3, 32, 32)
        assert frame.image.dtype == np.float32
        assert frame.labels.dtype == np.uint8
        assert frame.spacing == (9.0, SPACING, SPACING)
        assert frame.structures == ("LV", "MYO", "RV")
        assert frame.group == {}
        np.testing.assert_array_equal(frame.image.min((1, 2)), 0)
        np.testing.assert_array_equal(frame.image.max((1, 2)), 1)


def test_acdc_labels_are_renumbered_and_axes_reversed(acdc: Path) -> None:
    path = acdc / "training/patient001/patient001_frame01"
    labels = np.zeros(SHAPE, np.uint8)
    labels[4, 10, 0], labels[10, 10, 1], labels[15, 20, 2] = 1, 2, 3
    save(Path(f"{path}_gt.nii.gz"), labels, (SPACING, SPACING, 9.0))
    save(Path(f"{path}.nii.gz"), volume(0), (SPACING, SPACING, 9.0))
    frame = read_acdc(acdc, patients=["001"], size=224)[0]
    left, top = (224 - SHAPE[0]) // 2, (224 - SHAPE[1]) // 2
    expected = {(0, top + 10, left + 4): 3, (1, top + 10, left + 10): 2, (2, top + 20, left + 15): 1}
    assert {tuple(map(int, at)): int(frame.labels[tuple(at)]) for at in np.argwhere(frame.labels)} == expected


def test_raw_intensities_are_clipped_at_percentiles_of_the_volume(acdc: Path) -> None:
    path = acdc / "training/patient001/patient001_frame01.nii.gz"
    voxels = volume(1, (224, 224, 3))
    voxels[0, 0] = 30000
    save(path, voxels, (SPACING, SPACING, 9.0))
    save(Path(str(path).replace(".nii", "_gt.nii")), label_map(1, voxels.shape), (SPACING, SPACING, 9.0))
    frame = read_acdc(acdc, patients=["001"], size=224, percentiles=(10, 80))[0]
    clipped = np.clip(voxels.T, *np.percentile(voxels, (10, 80))).astype(float)
    low, high = clipped.min((1, 2), keepdims=True), clipped.max((1, 2), keepdims=True)
    np.testing.assert_allclose(frame.image, (clipped - low) / (high - low), atol=1e-6)


def test_preprocessed_intensities_are_not_clipped(tmp_path: Path) -> None:
    image = np.zeros((224, 224, 2), np.float32)
    image[100, 100], image[110, 110] = 1.0, 0.5  # beyond any percentile
    save(tmp_path / "001/ES_img.nii.gz", image, (SPACING, SPACING, 9.0))
    save(tmp_path / "001/ES_seg.nii.gz", np.uint8(image > 0), (SPACING, SPACING, 9.0))
    (frame,) = read_preprocessed(tmp_path)
    assert (frame.phase, frame.structures, set(frame.cropped)) == ("ES", ("LV",), {"LV"})
    np.testing.assert_array_equal(np.unique(frame.image.round(6)), np.float32([0, 0.5, 1]))


def test_read_acdc_recognises_the_preprocessed_layout(preprocessed: Path) -> None:
    ours, plain = read_acdc(preprocessed, patients=["007"])[0], read_preprocessed(preprocessed, patients=["007"])[0]
    np.testing.assert_array_equal(ours.image, plain.image)


def test_structures_of_a_data_set_without_right_ventricle(preprocessed: Path) -> None:
    frames = read_preprocessed(preprocessed)
    assert [(f.patient, f.phase, f.structures) for f in frames] == [
        ("007", "ED", ("LV", "MYO")),
        ("SC-HF-I-1", "ED", ("LV", "MYO")),
    ]


def test_mnms_takes_the_frames_of_its_table_counted_from_zero(mnms: Path) -> None:
    frames = read_mnms(mnms, size=32)
    assert [(f.patient, f.phase) for f in frames] == [
        (code, phase) for code in ("A1B2C3", "D4E5F6") for phase in ("ED", "ES")
    ]
    assert [f.group for f in frames[::2]] == [{"vendor": "A", "centre": "1"}, {"vendor": "B", "centre": "2"}]
    labels = label_map(7, (*SHAPE, 5))
    for frame, time in zip(frames[:2], (1, 3), strict=True):
        expected = pad_and_crop(resample_labels(labels[..., time].T, (1.4, 1.5)), 32)
        np.testing.assert_array_equal(frame.labels, expected)


def test_mnms_reads_other_splits_on_request(mnms: Path) -> None:
    write_mnms_subject(mnms, "T1T1T1", "Testing")
    with open(mnms / MNMS_CSV, "a") as file:
        file.write("3,T1T1T1,Canon,D,5,1,3,40\n")
    assert {f.patient for f in read_mnms(mnms, splits=["Testing"])} == {"T1T1T1"}
    assert "T1T1T1" not in {f.patient for f in read_mnms(mnms)}


def test_newest_mnms_table_wins(mnms: Path) -> None:
    (mnms / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").write_text(
        "External code,Vendor,Centre,ED,ES\nA1B2C3,Z,9,1,3\nD4E5F6,Z,9,1,3\n"
    )
    assert read_mnms(mnms)[0].group == {"vendor": "Z", "centre": "9"}


def test_missing_patients_are_left_out(acdc: Path) -> None:
    assert {f.patient for f in read_acdc(acdc, patients=["002", "099"])} == {"002"}


# Geometry


@pytest.mark.parametrize("spacing", [(1.9, 1.2), (SPACING, SPACING), (0.7, 3.0)])
def test_resampling_agrees_with_a_slow_loop(spacing: tuple[float, float]) -> None:
    image = np.random.default_rng(0).random((2, 9, 7)).astype(np.float32)
    labels = label_map(0, (2, 9, 7))
    new = resample_image(image, spacing), resample_labels(labels, spacing)
    rows, columns = (round(n * step / SPACING) for n, step in zip((9, 7), spacing, strict=True))
    assert new[0].shape == new[1].shape == (2, rows, columns)

    def position(index: int, size: int, new_size: int, step: float) -> float:
        centred = (index - (new_size - 1) / 2) * SPACING  # in mm from the centre, which both grids share
        return min(max(centred / step + (size - 1) / 2, 0), size - 1)

    for i in range(rows):
        for j in range(columns):
            y, x = position(i, 9, rows, spacing[0]), position(j, 7, columns, spacing[1])
            top, left = min(int(y), 7), min(int(x), 5)
            v, u = y - top, x - left
            square = image[:, top : top + 2, left : left + 2]
            expected = (square * np.outer([1 - v, v], [1 - u, u])).sum((1, 2))
            np.testing.assert_allclose(new[0][:, i, j], expected, atol=1e-6)
            np.testing.assert_array_equal(new[1][:, i, j], labels[:, round(y), round(x)])


@pytest.mark.parametrize(("height", "width", "size"), [(20, 300, 192), (224, 225, 192), (193, 200, 192), (40, 50, 256)])
def test_pad_and_crop_keeps_the_centre(height: int, width: int, size: int) -> None:
    array = np.arange(1, height * width + 1).reshape(1, height, width)
    result = pad_and_crop(array, size)
    assert result.shape == (1, size, size)
    padded = max(224, size)
    for i, j in ((size // 2, size // 2), (0, 0), (size - 1, size - 1), (3, size // 2)):
        y = i + (max(height, padded) - size) // 2 - max(padded - height, 0) // 2
        x = j + (max(width, padded) - size) // 2 - max(padded - width, 0) // 2
        inside = 0 <= y < height and 0 <= x < width
        assert result[0, i, j] == (array[0, y, x] if inside else 0)


def test_cropped_labels_are_counted(tmp_path: Path) -> None:
    labels = np.zeros((240, 240, 2), np.uint8)
    labels[120, 120], labels[120, :5], labels[:3, 120] = 1, 2, 3
    save(tmp_path / "001/ED_img.nii.gz", np.ones(labels.shape, np.float32), (SPACING, SPACING, 9.0))
    save(tmp_path / "001/ED_seg.nii.gz", labels, (SPACING, SPACING, 9.0))
    labels[100, 100] = 3
    save(tmp_path / "002/ED_img.nii.gz", np.ones(labels.shape, np.float32), (SPACING, SPACING, 9.0))
    save(tmp_path / "002/ED_seg.nii.gz", np.fliplr(labels), (SPACING, SPACING, 9.0))
    frames = read_preprocessed(tmp_path)
    assert [f.cropped for f in frames] == [{"LV": 0, "MYO": 10, "RV": 6}] * 2
    assert not frames[0].image.any()  # a constant slice becomes 0, not NaN


def test_halve_averages_the_image_and_takes_the_commonest_label() -> None:
    rng = np.random.default_rng(0)
    image, labels = rng.random((2, 8, 6)).astype(np.float32), label_map(5, (2, 8, 6))
    frame = Frame("001", "ED", image, labels, (9.0, 1.5, 1.5), cropped={"LV": 4})
    half = halve(frame)
    assert half.spacing == (9.0, 3.0, 3.0)
    assert half.cropped == {"LV": 4}
    means = np.empty((2, 4, 3))
    for k, i, j in np.ndindex(2, 4, 3):
        block = (k, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
        means[k, i, j] = image[block].mean()
        counts = np.bincount(labels[block].ravel(), minlength=4)
        chosen, first = half.labels[k, i, j], labels[k, 2 * i, 2 * j]
        assert counts[chosen] == counts.max()
        assert chosen == first or counts[first] < counts.max()
    low, high = means.min((1, 2), keepdims=True), means.max((1, 2), keepdims=True)
    np.testing.assert_allclose(half.image, (means - low) / (high - low), atol=1e-6)
    with pytest.raises(ValueError, match=r"even planes; got \(8, 5\)"):
        halve(replace(frame, image=image[..., :5]))


# Bad input: one line that names the file and says what to do


def break_acdc(root: Path, how: str) -> None:
    folder = root / "training/patient001"
    image, labels, info = (
        folder / name for name in ("patient001_frame01.nii.gz", "patient001_frame01_gt.nii.gz", "Info.cfg")
    )
    if how == "no image":
        image.unlink()
    elif how == "no labels":
        labels.unlink()
    elif how == "shape":
        save(labels, label_map(0, (20, 24, 4)))
    elif how == "axes":
        for path in (image, labels):
            save(path, volume(0, (*SHAPE, 2)) % 4)
    elif how == "affine":
        save(labels, label_map(0), origin=5.0)
    elif how == "voxel size":
        save(labels, label_map(0), spacing=(1.5, 1.4, 8.0))
    elif how == "unknown label":
        save(labels, np.full(SHAPE, 7, np.uint8))
    elif how == "fractional label":
        save(labels, np.full(SHAPE, 1.5, np.float32))
    elif how == "not finite":
        save(image, np.full(SHAPE, np.nan, np.float32))
    elif how == "truncated":
        image.write_bytes(image.read_bytes()[:-600])
    elif how == "not NIfTI":
        image.write_bytes(b"no image at all")
    elif how == "empty":
        image.write_bytes(b"")
    elif how == "no Info.cfg":
        info.unlink()
    elif how == "Info.cfg without ED":
        info.write_text("ES: 12\nGroup: NOR\n")
    elif how == "Info.cfg with words":
        info.write_text("ED: first\nES: 12\n")
    elif how == "two splits":
        write_acdc_patient(root / "testing/patient001")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no image", r"patient001_frame01\.nii\.gz: missing, patient001_frame01_gt\.nii\.gz needs it; copy"),
        ("no labels", r"patient001_frame01_gt\.nii\.gz: missing, patient001_frame01\.nii\.gz needs it; copy"),
        ("shape", r"frame01_gt\.nii\.gz: shape \(20, 24, 4\), image \(20, 24, 3\); both must .* copy"),
        ("axes", r"frame01_gt\.nii\.gz: shape \(20, 24, 3, 2\), .* the same 3 axes"),
        (
            "affine",
            r"frame01_gt\.nii\.gz: sform\[0, 3\] is 5, patient001_frame01\.nii\.gz has 0 in its sform: .*; copy",
        ),
        (
            "voxel size",
            r"frame01_gt\.nii\.gz: .*pixdim.* 1\.4 x 8 mm, patient001_frame01\.nii\.gz has .* 1\.4 x 9 mm; copy",
        ),
        ("unknown label", r"frame01_gt\.nii\.gz: unknown label 7; allowed are 0 to 3, relabel"),
        ("fractional label", r"frame01_gt\.nii\.gz: unknown label 1\.5; allowed are 0 to 3, relabel"),
        ("not finite", r"frame01\.nii\.gz: has voxels that are not finite; export"),
        ("truncated", r"frame01\.nii\.gz: cannot be read, it is truncated or no NIfTI file .*; copy it again"),
        ("not NIfTI", r"frame01\.nii\.gz: cannot be read, it is truncated or no NIfTI file .*; copy it again"),
        ("empty", r"frame01\.nii\.gz: cannot be read, it is truncated or no NIfTI file .*; copy it again"),
        ("no Info.cfg", r"Info\.cfg: missing; copy it"),
        ("Info.cfg without ED", r"Info\.cfg: ED must be a frame number, got None; copy"),
        ("Info.cfg with words", r"Info\.cfg: ED must be a frame number, got 'first'; copy"),
        ("two splits", r"testing/patient001: patient 001 is also in .*training; remove one"),
    ],
)
def test_broken_acdc_is_refused_in_one_line(acdc: Path, how: str, message: str) -> None:
    break_acdc(acdc, how)
    with pytest.raises(DataError, match=message) as caught:
        read_acdc(acdc)
    assert "\n" not in str(caught.value)


def break_mnms(root: Path, how: str) -> None:
    subject = root / "Training/Labeled/A1B2C3"
    rows = [["0", "A1B2C3", "Siemens", "A", "1", "1", "3", "50"], ["1", "D4E5F6", "Philips", "B", "2", "1", "3", "60"]]
    if how == "no table":
        (root / MNMS_CSV).unlink()
    elif how == "no column":
        write_mnms_rows(root, [], columns=("External code", "Vendor", "ED", "ES"))
    elif how == "no row":
        write_mnms_rows(root, rows[1:])
    elif how == "no number":
        write_mnms_rows(root, [[*rows[0][:5], "", "3", "50"], rows[1]])
    elif how == "short row":
        write_mnms_rows(root, [rows[0][:3], rows[1]])
    elif how == "counted from one":
        write_mnms_rows(root, [[*rows[0][:5], "2", "4", "50"], rows[1]])
    elif how == "beyond the end":
        write_mnms_rows(root, [[*rows[0][:5], "1", "25", "50"], rows[1]])
    elif how == "3-D":
        save(subject / "A1B2C3_sa.nii.gz", volume(0))
        save(subject / "A1B2C3_sa_gt.nii.gz", label_map(0))
    elif how == "no image":
        (subject / "A1B2C3_sa.nii.gz").unlink()
    elif how == "two splits":
        write_mnms_subject(root, "A1B2C3", "Validation")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no table", r"no \*M&Ms\*\.csv; copy"),
        ("no column", r"opendataset\.csv: no column Centre; copy"),
        ("no row", r"opendataset\.csv: no row for subject A1B2C3 of .*Labeled/A1B2C3; add it, or remove"),
        ("no number", r"opendataset\.csv: ED of A1B2C3 must be a frame number, got ''; copy"),
        ("short row", r"opendataset\.csv: ED of A1B2C3 must be a frame number, got ''; copy"),
        ("counted from one", r"A1B2C3_sa_gt\.nii\.gz: frame 2 has no labels, frames \[1, 3\] do; correct ED in .*csv"),
        ("beyond the end", r"A1B2C3_sa_gt\.nii\.gz: frame 25 has no labels, frames \[1, 3\] do; correct ES in .*csv"),
        ("3-D", r"A1B2C3_sa_gt\.nii\.gz: shape \(20, 24, 3\), .* the same 4 axes"),
        ("no image", r"A1B2C3_sa\.nii\.gz: missing, A1B2C3_sa_gt\.nii\.gz needs it; copy"),
        ("two splits", r"Validation/A1B2C3: patient A1B2C3 is also in .*Labeled; remove one"),
    ],
)
def test_broken_mnms_is_refused_in_one_line(mnms: Path, how: str, message: str) -> None:
    break_mnms(mnms, how)
    with pytest.raises(DataError, match=message) as caught:
        read_mnms(mnms)
    assert "\n" not in str(caught.value)


def test_preprocessed_labels_without_their_image_are_refused(preprocessed: Path) -> None:
    (preprocessed / "007/ED_img.nii.gz").unlink()
    with pytest.raises(DataError, match=r"007/ED_img\.nii\.gz: missing, ED_seg\.nii\.gz needs it; copy"):
        read_preprocessed(preprocessed)


@pytest.mark.parametrize("reader", [read_acdc, read_mnms, read_preprocessed])
def test_missing_folders_are_refused(tmp_path: Path, reader: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; pass the folder that holds the data set"):
        reader(tmp_path / "nowhere")


@pytest.mark.parametrize("reader", [read_acdc, read_preprocessed])
def test_empty_folders_are_refused(tmp_path: Path, reader: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="no patient in any layout known here; pass the folder"):
        reader(tmp_path)


def test_none_of_the_patients_there(acdc: Path, mnms: Path, preprocessed: Path) -> None:
    with pytest.raises(DataError, match="none of the patients 098, 099; it has 001, 002"):
        read_acdc(acdc, patients=["098", "099"])
    with pytest.raises(DataError, match="none of the patients X; it has A1B2C3, D4E5F6"):
        read_mnms(mnms, patients=["X"])
    with pytest.raises(DataError, match="none of the patients 008; it has 007, SC-HF-I-1"):
        read_preprocessed(preprocessed, patients=["008"])


def test_labels_cut_off_by_the_crop_are_added_up_per_patient() -> None:
    empty = np.zeros((1, 4, 4), np.uint8)

    def frame(patient: str, phase: str, cropped: dict[str, int]) -> Frame:
        return Frame(patient, phase, empty.astype(np.float32), empty, (10.0, 1.4, 1.4), cropped=cropped)

    frames = [frame("046", "ED", {"LV": 0, "RV": 5}), frame("046", "ES", {"RV": 2}), frame("007", "ED", {"LV": 0})]
    assert count_cropped(frames) == {"046": {"RV": 7}}


# Files as users have them


def pair(root: Path, image: nib.Nifti1Image, labels: nib.Nifti1Image, suffix: str = ".nii.gz") -> Path:
    """Write a patient of ACDC whose two moments are the same pair of files; return the data set's folder."""
    folder = root / "training" / "patient001"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Info.cfg").write_text("ED: 1\nES: 2\n")
    for moment in (1, 2):
        nib.save(image, folder / f"patient001_frame{moment:02}{suffix}")
        nib.save(labels, folder / f"patient001_frame{moment:02}_gt{suffix}")
    return root


def same_frames(some: Sequence[Frame], others: Sequence[Frame]) -> bool:
    return len(some) == len(others) and all(
        (a.patient, a.phase, a.spacing, a.group) == (b.patient, b.phase, b.spacing, b.group)
        and np.array_equal(a.image, b.image)
        and np.array_equal(a.labels, b.labels)
        for a, b in zip(some, others, strict=True)
    )


READERS = {"acdc": read_acdc, "mnms": read_mnms, "preprocessed": read_preprocessed}


@pytest.fixture(params=READERS)
def release(request: pytest.FixtureRequest) -> tuple[Path, Callable[..., list[Frame]]]:
    """A data set of each layout, and what reads it."""
    return request.getfixturevalue(request.param), READERS[request.param]


def unpack(path: Path, *, keep: bool = False) -> None:
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    if not keep:
        path.unlink()


def test_unpacked_volumes_are_the_same_frames(release: tuple[Path, Callable[..., list[Frame]]]) -> None:
    root, read = release
    packed = read(root)
    volumes = sorted(root.rglob("*.nii.gz"))
    unpack(volumes[0])
    assert same_frames(read(root), packed)
    unpack(volumes[1], keep=True)
    for path in volumes[2:]:
        unpack(path)
    assert same_frames(read(root), packed)
    assert patients_below(root) == {path.parent.name.removeprefix("patient") for path in volumes}


def test_an_unpacked_volume_that_differs_from_the_packed_one_beside_it_is_named(acdc: Path) -> None:
    path = acdc / "training/patient001/patient001_frame01_gt.nii.gz"
    unpack(path, keep=True)
    read_acdc(acdc, size=32)
    edited = path.with_suffix("")
    content = bytearray(edited.read_bytes())
    content[-1] ^= 1
    edited.write_bytes(content)
    with pytest.raises(DataError, match=r"frame01_gt\.nii\.gz: patient001_frame01_gt\.nii lies beside it, and differs"):
        read_acdc(acdc, size=32)


def test_a_missing_unpacked_volume_is_named(acdc: Path) -> None:
    for path in acdc.rglob("*.nii.gz"):
        unpack(path)
    (acdc / "training/patient001/patient001_frame01.nii").unlink()
    with pytest.raises(DataError, match=r"frame01\.nii\.gz: missing, patient001_frame01_gt\.nii needs it; copy"):
        read_acdc(acdc)


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_a_voxel_size_in_another_unit_gives_the_same_frames(tmp_path: Path, unit: str) -> None:
    frames = []
    for name, factor in (("mm", 1.0), (unit, {"meter": 1e-3, "micron": 1e3}[unit])):
        files = []
        for voxels in (volume(0), label_map(0)):
            one = nib.Nifti1Image(voxels, None)
            one.header.set_zooms([step * factor for step in (1.36719, 1.5, 9.0)])
            one.header.set_xyzt_units(name)
            files.append(one)
        frames.append(read_acdc(pair(tmp_path / name, *files)))
    assert same_frames(*frames)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_voxel_size_that_is_none_is_refused_in_either_file(tmp_path: Path, broken: int) -> None:
    files = [nib.Nifti1Image(volume(0), None), nib.Nifti1Image(label_map(0), None)]
    for file in files:
        file.header.set_zooms((1.5, 1.4, 9.0))
    files[broken].header["pixdim"][1:4] = 0.0015, 0.0014, 0.009
    name = ("frame01", "frame01_gt")[broken]
    with pytest.raises(DataError, match=rf"{name}\.nii\.gz: voxel size 0\.0015 x .* it may be in metres; correct"):
        read_acdc(pair(tmp_path, *files))


def test_a_plane_that_would_grow_beyond_measure_is_refused_unread(tmp_path: Path) -> None:
    files = [nib.Nifti1Image(np.zeros((600, 600, 2), np.uint8), np.diag([29.0, 29.0, 9.0, 1.0])) for _ in range(2)]
    with pytest.raises(DataError, match=r"frame01\.nii\.gz: would have 12727 x 12727 x 2 voxels at 1\.36719 mm.* crop"):
        read_acdc(pair(tmp_path, *files))


@pytest.mark.parametrize("highest", [2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint16, np.float32, np.float64])
def test_labels_that_a_program_scaled_are_those_that_they_were(
    tmp_path: Path, dtype: type[np.generic], highest: int
) -> None:
    labels, affine = np.minimum(label_map(0), highest), np.diag([1.5, 1.4, 9.0, 1.0])
    image = nib.Nifti1Image(volume(0), affine)
    plain = read_acdc(pair(tmp_path / "plain", image, nib.Nifti1Image(labels, affine)))
    scaled = nib.Nifti1Image(labels.astype(np.float64), affine)
    scaled.header.set_data_dtype(dtype)
    assert same_frames(read_acdc(pair(tmp_path / "scaled", image, scaled)), plain)
    nearly = (labels + np.random.default_rng(0).choice([-1e-3, 0, 1e-3], labels.shape)).astype(np.float32)
    assert same_frames(read_acdc(pair(tmp_path / "nearly", image, nib.Nifti1Image(nearly, affine))), plain)


@pytest.mark.parametrize(
    ("number", "dtype", "named"),
    [
        (1.4, np.float32, "1.4"),
        (1.4, np.uint8, "1.4"),
        (1.002, np.float64, "1.002"),
        (0.99, np.float32, "0.99"),
        (-0.4, np.float32, "-0.4"),
        (-1, np.int16, "-1"),
        (4, np.uint8, "4"),
        (65535, np.uint16, "65535"),
        (1e20, np.float32, "1e[+]20"),
    ],
)
def test_labels_that_are_none_are_refused_by_their_value(
    tmp_path: Path, number: float, dtype: type[np.generic], named: str
) -> None:
    labels, affine = label_map(0).astype(np.float64), np.diag([1.5, 1.4, 9.0, 1.0])
    labels[labels == 1] = number
    file = nib.Nifti1Image(labels, affine)
    file.header.set_data_dtype(dtype)
    with pytest.raises(
        DataError, match=rf"frame01_gt\.nii\.gz: unknown label {named}[0-9]*; allowed are 0 to 3, relabel"
    ):
        read_acdc(pair(tmp_path, nib.Nifti1Image(volume(0), affine), file))


TRUE, OTHER = np.diag([-1.68, -1.68, 10.0, 1.0]), np.diag([-1.68, 1.68, 10.0, 1.0])
WRONG = np.diag([-1.0, -1.0, 1.0, 1.0])  # ACDC's sforms have voxels of 1 mm
MOVED = TRUE + np.diag([1.0], 3) * 4


def placed(voxels: np.ndarray, sform: np.ndarray | None, qform: np.ndarray | None) -> nib.Nifti1Image:
    file = nib.Nifti1Image(voxels, None)
    file.header.set_zooms((1.68, 1.68, 10.0))
    file.set_qform(qform, 1 if qform is not None else 0, update_affine=False)
    file.set_sform(sform, 1 if sform is not None else 0, update_affine=False)
    file.header["pixdim"][1:4] = 1.68, 1.68, 10
    return file


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ((WRONG, None), (WRONG, None)),
        ((WRONG, None), (TRUE, TRUE)),
        ((TRUE, None), (WRONG, None)),
        ((WRONG, TRUE), (None, TRUE)),
        ((TRUE, OTHER), (None, TRUE)),
        ((OTHER, TRUE), (TRUE, None)),
        ((TRUE, OTHER), (TRUE, MOVED)),
        ((None, None), (TRUE, TRUE)),
        ((None, TRUE), (None, None)),
        ((TRUE, None), (TRUE + 1e-3, None)),
    ],
)
def test_either_placement_may_fit(tmp_path: Path, image: Any, labels: Any) -> None:
    plain = read_acdc(pair(tmp_path / "plain", placed(volume(0), None, None), placed(label_map(0), None, None)))
    files = placed(volume(0), *image), placed(label_map(0), *labels)
    assert same_frames(read_acdc(pair(tmp_path / "placed", *files)), plain)


@pytest.mark.parametrize(
    ("image", "labels", "field"),
    [
        ((TRUE, None), (OTHER, None), r"sform\[1, 1\] is 1\.68, patient001_frame01\.nii\.gz has -1\.68 in its sform"),
        ((None, TRUE), (None, OTHER), r"qform\[1, 1\] is 1\.68, patient001_frame01\.nii\.gz has -1\.68 in its qform"),
        ((TRUE, TRUE), (OTHER, OTHER), r"sform\[1, 1\] is 1\.68, patient001_frame01\.nii\.gz has -1\.68 in its sform"),
        ((None, TRUE), (MOVED, None), r"sform\[0, 3\] is 4, patient001_frame01\.nii\.gz has 0 in its qform"),
        ((WRONG, TRUE), (WRONG, MOVED), r"qform\[0, 3\] is 4, patient001_frame01\.nii\.gz has 0 in its qform"),
    ],
)
def test_placements_of_which_none_fits_are_named(tmp_path: Path, image: Any, labels: Any, field: str) -> None:
    with pytest.raises(DataError, match=rf"frame01_gt\.nii\.gz: {field}: one of them lies elsewhere; copy") as caught:
        read_acdc(pair(tmp_path, placed(volume(0), *image), placed(label_map(0), *labels)))
    assert "resample" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_that_an_editor_saved_anew_gives_the_same_frames(acdc: Path, mnms: Path, encoding: str, end: str) -> None:
    before = read_acdc(acdc), read_mnms(mnms)
    for file in (acdc / "training/patient001/Info.cfg", mnms / MNMS_CSV):
        text = file.read_text().replace("NOR", "Größe").replace("Siemens", "Müller")
        file.write_bytes(text.replace("\n", end).encode(encoding))
    assert all(map(same_frames, (read_acdc(acdc), read_mnms(mnms)), before))


@pytest.mark.parametrize("comma", [";", "\t"])
def test_a_table_that_a_spreadsheet_saved_anew_gives_the_same_frames(mnms: Path, comma: str) -> None:
    before, table = read_mnms(mnms), mnms / MNMS_CSV
    rows = [[f" {field} " for field in row] for row in csv.reader(table.read_text().splitlines())]
    rows[1][5] = "1.0"
    table.write_text("\r\n".join(comma.join(row) for row in rows), encoding="utf-16")
    assert same_frames(read_mnms(mnms), before)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"ED: 1\nES: 12\nED: 2\n", "ED is '1' and '2'; copy"),
        (b"ED: 12\nES: 12\n", "ED and ES are both frame 12; copy"),
        ("ED: 1²\nES: 12\n".encode(), "ED must be a frame number, got '1²'; copy"),
        (b"ED: " + b"1" * 5000 + b"\nES: 12\n", "ED must be a frame number"),
        (b"ED: 7\nES: 12\n", r"ED is frame 7, which has no files; correct it, or copy patient001_frame07\.nii\.gz"),
        (bytes(64), "is no text file .*; copy it again"),
        (b"\xff\xfeE\0D\0:", "is no text file .*; copy it again"),
    ],
)
def test_info_of_no_sense_is_refused_in_one_line(acdc: Path, text: bytes, reason: str) -> None:
    (acdc / "training/patient001/Info.cfg").write_bytes(text)
    with pytest.raises(DataError, match=rf"Info\.cfg: {reason}") as caught:
        read_acdc(acdc)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["External code,Vendor,Centre,ED,ES", "A1B2C3,A,1,1,3", "A1B2C3,A,1,3,1"], "two rows for subject A1B2C3, and"),
        (["External code,Vendor,Centre,ED,ES,ED", "A1B2C3,A,1,1,3,3"], "two columns called ED; copy"),
        ([], "no column External code, Vendor, Centre, ED, ES; copy"),
        (["External code,Vendor,Centre,ED,ES", "x" * 200_000], "is no CSV .*; copy"),
        (["External code,Vendor,Centre,ED,ES", "A1B2C3,A,1,1\0,3"], "is no text file .*; copy"),
    ],
)
def test_a_table_of_no_sense_is_refused_in_one_line(mnms: Path, lines: list[str], reason: str) -> None:
    (mnms / MNMS_CSV).write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"opendataset\.csv: {reason}") as caught:
        read_mnms(mnms)
    assert "\n" not in str(caught.value)


def test_a_table_that_names_one_frame_twice_is_refused(mnms: Path) -> None:
    table = mnms / MNMS_CSV
    table.write_text(table.read_text().replace("A,1,1,3", "A,1,3,3"))
    with pytest.raises(DataError, match=r"frames \[1, 3\] have labels, ED and ES are both 3; correct .*csv"):
        read_mnms(mnms)


def test_a_row_that_comes_twice_alike_does_no_harm(mnms: Path) -> None:
    before, table = read_mnms(mnms), mnms / MNMS_CSV
    text = table.read_text()
    table.write_text(text + "\n" + text.split("\n")[1] + "\n\n")
    assert same_frames(read_mnms(mnms), before)


@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_no_file_is_named_in_one_line(release: tuple[Path, Callable[..., list[Frame]]], what: str) -> None:
    root, read = release
    told = {"folder": "a folder", "pipe": "a named pipe", "socket": "a socket", "link to a device": "a device"}
    for pattern in ("*_gt.nii.gz", "*_seg.nii.gz", "*_img.nii.gz", "Info.cfg", "*.csv"):
        for path in sorted(root.rglob(pattern))[:1]:
            content = path.read_bytes()
            in_place_of(path, what)
            reason = f"it is {told[what]}, not a file" if what in told else "missing|symbolic links|No such file"
            name = path.name if what != "dangling link" else path.parent.name
            with pytest.raises(DataError, match=rf"{name}.*({reason})") as caught:
                read(root)
            assert "\n" not in str(caught.value)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            path.write_bytes(content)


@contextmanager
def forbidden(name: str, path_is: Callable[[Path], bool]) -> Iterator[None]:
    """Let a function of `os` refuse some paths, as it would a user who may not look there; tests may run as root."""
    allowed = getattr(os, name)

    def ask(path: Any, *rest: Any, **more: Any) -> Any:
        if isinstance(path, str | Path) and path_is(Path(path)):
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *rest, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, name, ask)
        yield


DENIED = ": cannot be read (Permission denied); allow it, or copy it again."


def test_files_that_may_not_be_read_are_named(release: tuple[Path, Callable[..., list[Frame]]]) -> None:
    root, read = release
    for file in (path for path in root.rglob("*") if path.is_file() and "Unlabeled" not in path.parts):
        with forbidden("open", file.__eq__), pytest.raises(DataError) as caught:
            read(root)
        assert str(caught.value) == f"{file}{DENIED}"


def test_folders_that_may_not_be_entered_are_named(release: tuple[Path, Callable[..., list[Frame]]]) -> None:
    root, read = release
    for folder in {path.parent for pattern in ("*_gt.nii.gz", "*_seg.nii.gz") for path in root.rglob(pattern)}:
        with forbidden("stat", lambda path, folder=folder: folder in path.parents), pytest.raises(DataError) as caught:
            read(root)
        assert str(caught.value).startswith(f"{folder}/")
        assert str(caught.value).endswith(DENIED)


def test_folders_that_may_not_be_listed_are_named(release: tuple[Path, Callable[..., list[Frame]]]) -> None:
    root, read = release
    parents = {read_acdc: root / "training", read_mnms: root / "Training/Labeled", read_preprocessed: root / "007"}
    for folder in (root, parents[read]):
        with forbidden("listdir", folder.__eq__), pytest.raises(DataError) as caught:
            read(root)
        assert str(caught.value) == f"{folder}{DENIED}"
        with forbidden("scandir", folder.__eq__), pytest.raises(DataError) as caught:
            patients_below(root)
        assert str(caught.value) == f"{folder}{DENIED}"


def test_reading_without_enough_memory_is_refused(acdc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*rest: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "frombuffer", fail)
    with pytest.raises(DataError, match=r"frame01\.nii\.gz: needs more memory than there is; free some, or crop it"):
        read_acdc(acdc)


def test_an_error_is_one_line_whatever_the_files_are_called(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_acdc(tmp_path / "two\nlines")
    assert str(caught.value).startswith(f"{tmp_path}/two lines: no such folder")


def test_folders_of_the_disk_are_no_patients(preprocessed: Path) -> None:
    before = read_preprocessed(preprocessed)
    shutil.copytree(preprocessed / "007", preprocessed / "lost+found")
    assert same_frames(read_preprocessed(preprocessed), before)
    assert patients_below(preprocessed) == {"007", "SC-HF-I-1"}


# Real data, where there are any


def real_data() -> Path:
    beside = Path(__file__).parents[3].parent / "shared" / "data"
    folder = Path(os.environ.get("LATENTAUG_DATA_DIR", beside))
    if not (folder / "acdc_raw").is_dir():
        pytest.skip("needs real ACDC data: set LATENTAUG_DATA_DIR to a folder with acdc/ and acdc_raw/")
    return folder


@pytest.mark.parametrize("patient", ["021", "022"])
def test_raw_and_preprocessed_acdc_are_equal(patient: str) -> None:
    folder = real_data()
    raw = read_acdc(folder / "acdc_raw", patients=[patient], percentiles=(1, 99))
    preprocessed = read_acdc(folder / "acdc", patients=[patient])
    assert len(raw) == len(preprocessed) == 2
    for ours, theirs in zip(raw, preprocessed, strict=True):
        assert (ours.patient, ours.phase, ours.spacing) == (theirs.patient, theirs.phase, theirs.spacing)
        assert ours.cropped == theirs.cropped
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_allclose(ours.image, theirs.image, atol=1e-6)


def test_patient_046_loses_two_rows_to_the_crop() -> None:
    folder = real_data()
    frames = read_acdc(folder / "acdc", patients=["046"])
    assert [f.cropped for f in frames] == [{"LV": 0, "MYO": 0, "RV": 35}, {"LV": 0, "MYO": 0, "RV": 0}]
