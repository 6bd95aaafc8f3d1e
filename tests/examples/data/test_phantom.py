from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_fill_holes
from torch import Tensor

from cardiac.data import phantom
from cardiac.data.phantom import SCANNERS, PhantomPaths, make_phantom, make_study
from cardiac.data.readers import Frame, read_acdc, read_mnms, read_preprocessed
from study.run.metrics import evaluate

PATIENTS = ("001", "022")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> PhantomPaths:
    return make_phantom(tmp_path_factory.mktemp("cache"), acdc_patients=PATIENTS, mnms_subjects=2)


@pytest.fixture(scope="module")
def frames(paths: PhantomPaths) -> list[Frame]:
    return read_acdc(paths.acdc) + read_mnms(paths.mnms)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Makes studies of a few voxels in no time, and counts them."""
    made: list[object] = []

    def study(rng: np.random.Generator, scanner: object, group: Any) -> phantom.Study:
        made.append(group)
        images = rng.integers(0, 500, (3, 2, 6, 5)).astype(np.int16)
        return phantom.Study(images, np.uint8(images % 4), (8.0, 1.4, 1.4), group)

    monkeypatch.setattr(phantom, "make_study", study)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def volumes(frames: list[Frame], patient: str) -> Any:
    """Millilitres of LV, MYO and RV in end diastole and end systole."""
    counted = [
        np.bincount(f.labels.ravel(), minlength=4)[1:] * np.prod(f.spacing) for f in frames if f.patient == patient
    ]
    return np.array(counted) / 1000


# Anatomy


def test_the_readers_take_the_phantom_for_a_data_set(frames: list[Frame]) -> None:
    assert [f.patient for f in frames[:4]] == ["001", "001", "022", "022"]
    assert [f.phase for f in frames] == ["ED", "ES"] * 4
    assert {f.group["vendor"] for f in frames[4:]} == {"A", "B"}
    for frame in frames:
        assert 8 <= len(frame.image) <= 12
        assert set(np.unique(frame.labels)) == {0, 1, 2, 3}
        assert sum(frame.cropped.values()) == 0


class Background(torch.nn.Module):
    """Finds nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(images), *[torch.zeros_like(images)] * 3], dim=1)

    def refine(self, logits: Tensor) -> Tensor:
        return logits


def test_vendors_and_centres_of_the_phantom_have_columns_of_their_own(frames: list[Frame]) -> None:
    test_sets = {"ACDC": frames[:4], "M&Ms": frames[4:]}
    scores = evaluate(Background(), test_sets, torch.device("cpu"), method="standard", draw=0)
    patients = {column: {s.patient for s in scores if s.column == column} for column in {s.column for s in scores}}
    first, second = (frame.patient for frame in sorted(frames[4::2], key=lambda frame: frame.group["vendor"]))
    assert patients == {
        "ACDC": {"001", "022"},
        "M&Ms": {first, second},
        "M&Ms/A": {first},
        "M&Ms/B": {second},
        "M&Ms/centre 1": {first},
        "M&Ms/centre 2": {second},
    }
    assert {(s.metric, s.value) for s in scores} == {("dice", 0), ("missed", 1)}


def test_volumes_are_those_of_hearts_and_shrink_in_systole(frames: list[Frame]) -> None:
    for patient in {f.patient for f in frames}:
        end_diastole, end_systole = volumes(frames, patient)
        lv, myocardium, rv = end_diastole
        assert 40 < lv < 320
        assert 60 < myocardium < 280
        assert 30 < rv < 320
        assert (end_systole[[0, 2]] < 0.98 * end_diastole[[0, 2]]).all()
        assert end_systole[1] == pytest.approx(myocardium, rel=0.2)


def test_the_left_cavity_lies_inside_a_closed_ring_of_muscle(frames: list[Frame]) -> None:
    for frame in frames:
        for labels in frame.labels:
            cavity, ring = labels == 1, labels == 2
            assert not (binary_dilation(cavity) & ~cavity & ~ring).any()
            assert not (cavity & ~binary_fill_holes(ring)).any()


def test_the_right_ventricle_touches_the_septum_on_one_side(frames: list[Frame]) -> None:
    for frame in frames:
        labels = frame.labels[len(frame.labels) // 2]
        right, left = labels == 3, labels == 1
        assert (binary_dilation(right) & (labels == 2)).any()
        assert np.argwhere(right)[:, 1].mean() < np.argwhere(left)[:, 1].mean() - 10


def test_end_systole_leaves_basal_slices_without_labels(frames: list[Frame]) -> None:
    labelled = {(f.patient, f.phase): f.labels.any(axis=(1, 2)).sum() for f in frames}
    assert all(labelled[p, "ES"] <= labelled[p, "ED"] for p, _ in labelled)
    assert any(labelled[p, "ES"] < labelled[p, "ED"] for p, _ in labelled)


def test_blood_is_brighter_than_muscle(frames: list[Frame]) -> None:
    for frame in frames:
        blood, muscle = (np.median(frame.image[frame.labels == label]) for label in (1, 2))
        assert blood > 1.5 * muscle


def test_patients_differ(frames: list[Frame]) -> None:
    assert abs(volumes(frames, "001") - volumes(frames, "022"))[0].max() > 10


# Scanner


def test_vendors_differ_on_the_same_person() -> None:
    studies = {name: make_study(np.random.default_rng(0), SCANNERS[name], "NOR") for name in ("A", "B")}

    def contrast(study: phantom.Study) -> float:
        levels = [np.median(study.images[0][study.labels[0] == label]) for label in (1, 2)]
        return levels[0] / levels[1]

    def noise(study: phantom.Study) -> float:
        return study.images[0][:, :8, :8].std() / study.images[0].mean()

    assert contrast(studies["A"]) > 1.2 * contrast(studies["B"])
    assert noise(studies["A"]) > 1.2 * noise(studies["B"])


def test_noise_is_rician() -> None:
    scanner = SCANNERS["A"]
    air = phantom._acquire(np.random.default_rng(0), scanner, np.zeros((4, 64, 64), np.float32))
    assert air.min() > 0
    assert air.mean() / np.sqrt((air**2).mean()) == pytest.approx(np.sqrt(np.pi) / 2, rel=0.02)  # Rayleigh


def test_borders_of_fat_and_water_are_black() -> None:
    scanner = SCANNERS["ACDC"]
    codes = np.full((8, 8), phantom.Tissue.FAT, np.uint8)
    codes[:, 3:] = phantom.Tissue.BLOOD  # the border runs through the second voxel of every row
    flat = np.zeros((8, 8), np.float32)
    water, fat = phantom._mix(scanner, codes, phantom.Plane(flat, flat, flat, flat))
    signal = np.abs(water - fat)
    assert (signal[:, 1] < 0.2 * signal[:, [0, 2, 3]].min()).all()


# Files


def test_the_layouts_are_those_of_the_releases(paths: PhantomPaths) -> None:
    patient = paths.acdc / "training/patient001"
    assert sorted(path.name for path in patient.iterdir()) == [
        "Info.cfg",
        "patient001_4d.nii.gz",
        "patient001_frame01.nii.gz",
        "patient001_frame01_gt.nii.gz",
        "patient001_frame03.nii.gz",
        "patient001_frame03_gt.nii.gz",
    ]
    cine, frame = (nib.load(patient / f"patient001_{name}.nii.gz") for name in ("4d", "frame03"))
    np.testing.assert_array_equal(cine.dataobj[..., 2], frame.dataobj)
    assert cine.shape[:2] < cine.shape[1::-1]  # x, y: taller than wide
    labels = np.asarray(nib.load(patient / "patient001_frame01_gt.nii.gz").dataobj)
    ours = read_acdc(paths.acdc, patients=["001"], size=300)[0].labels
    assert (labels == 3).any(axis=(0, 1)).tolist() == (ours == 1).any(axis=(1, 2)).tolist()  # the release's LV is 3

    (table,) = paths.mnms.glob("*M&Ms*.csv")
    assert table.read_text().startswith("External code,VendorName,Vendor,Centre,ED,ES")
    assert len(list(paths.mnms.glob("Training/Labeled/*/*_sa_gt.nii.gz"))) == 2
    (unlabelled,) = paths.mnms.glob("Training/Unlabeled/*/*")
    assert nib.load(unlabelled).ndim == 4


def test_a_preprocessed_copy_reads_the_same(paths: PhantomPaths, tmp_path: Path) -> None:
    for phase, frame in (("ED", "01"), ("ES", "03")):
        image = nib.load(paths.acdc / f"training/patient022/patient022_frame{frame}.nii.gz")
        labels = nib.load(paths.acdc / f"training/patient022/patient022_frame{frame}_gt.nii.gz")
        voxels = np.asarray(image.dataobj, float)
        low, high = np.percentile(voxels, (2, 98))
        scaled = ((voxels.clip(low, high) - low) / (high - low)).astype(np.float32)
        renumbered = np.array([0, 3, 2, 1], np.uint8)[np.asarray(labels.dataobj)]
        folder = tmp_path / "022"
        folder.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(scaled, image.affine), folder / f"{phase}_img.nii.gz")
        nib.save(nib.Nifti1Image(renumbered, image.affine), folder / f"{phase}_seg.nii.gz")
    raw, copy = read_acdc(paths.acdc, patients=["022"]), read_preprocessed(tmp_path)
    for ours, theirs in zip(raw, copy, strict=True):
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_allclose(ours.image, theirs.image, atol=1e-6)
        assert (ours.spacing, ours.structures, ours.cropped) == (theirs.spacing, theirs.structures, theirs.cropped)


def test_a_patient_does_not_depend_on_the_others(paths: PhantomPaths, tmp_path: Path) -> None:
    alone = make_phantom(tmp_path, acdc_patients=["022"], mnms_subjects=0)
    name = "training/patient022"
    assert files(alone.acdc / name) == files(paths.acdc / name)


def test_the_same_arguments_give_the_same_files(tiny: list[object], tmp_path: Path) -> None:
    one = make_phantom(tmp_path / "one", acdc_patients=PATIENTS)
    two = make_phantom(tmp_path / "two", acdc_patients=PATIENTS[::-1])
    other = make_phantom(tmp_path / "one", acdc_patients=PATIENTS, seed=1)
    assert files(one.acdc.parent) == files(two.acdc.parent)
    assert files(one.acdc) != files(other.acdc)


def test_a_finished_phantom_is_found_again(tiny: list[object], tmp_path: Path) -> None:
    first = make_phantom(tmp_path, acdc_patients=PATIENTS)
    count = len(tiny)
    assert make_phantom(tmp_path, acdc_patients=PATIENTS) == first
    assert len(tiny) == count > 0


def test_a_new_version_is_made_afresh(tiny: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_phantom(tmp_path, acdc_patients=PATIENTS)
    monkeypatch.setattr(phantom, "VERSION", phantom.VERSION + 1)
    assert make_phantom(tmp_path, acdc_patients=PATIENTS) != first


def test_an_interrupted_run_leaves_nothing(tiny: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "_write_mnms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path, acdc_patients=PATIENTS)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_agree(tiny: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_built = threading.Barrier(2)
    publish = phantom.publish

    def wait_and_publish(built: Path, target: Path) -> None:
        both_built.wait(timeout=30)
        publish(built, target)

    monkeypatch.setattr(phantom, "publish", wait_and_publish)
    results = []
    runs = [
        threading.Thread(target=lambda: results.append(make_phantom(tmp_path, acdc_patients=PATIENTS))) for _ in "12"
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(results) == 2
    assert results[0] == results[1]
    assert [path.name for path in tmp_path.iterdir()] == [results[0].acdc.parent.name]
    assert len(read_acdc(results[0].acdc)) == 4
