from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from cardiac.data import cache as cache_module
from cardiac.data import shifts as shifts_module
from cardiac.data.cache import Cache, publish
from cardiac.data.corruptions import PARAMETERS, corrupt, recipe
from cardiac.data.nifti import MAX_FILE_BYTES
from cardiac.data.phantom import make_phantom
from cardiac.data.readers import DataError, Frame, read_acdc, read_mnms
from cardiac.data.shifts import SEVERITIES, SHIFTS
from cardiac.run import study as study_module
from cardiac.run.presets import PRESETS, Preset
from cardiac.run.study import Sources, Study
from tests.support.damage import in_place_of
from tests.support.releases import write_acdc

TINY = replace(PRESETS["quick"], image_size=32, corruption_draws=2)


def frame(patient: str = "007", phase: str = "ED", depth: int = 3, seed: int = 0) -> Frame:
    random = np.random.default_rng(seed)
    return Frame(
        patient,
        phase,
        random.random((depth, 6, 6), dtype=np.float32),
        random.integers(0, 4, (depth, 6, 6), dtype=np.uint8),
        (9.1, 1.36719, 1.36719),
        ("LV", "MYO"),
        {"vendor": "A", "centre": "1"},
        {"LV": 0, "MYO": 3},
    )


FRAMES = [frame(), frame(phase="ES", seed=1), frame("008", depth=5, seed=2)]


def same(some: Sequence[Frame], others: Sequence[Frame]) -> bool:
    """Whether frames are equal in every field, bit for bit, types included."""
    if len(some) != len(others):
        return False
    for one, other in zip(some, others, strict=True):
        for name in (field.name for field in fields(Frame)):
            mine, theirs = getattr(one, name), getattr(other, name)
            if isinstance(mine, np.ndarray):
                if mine.dtype != theirs.dtype or mine.shape != theirs.shape or mine.tobytes() != theirs.tobytes():
                    return False
            elif (type(mine), mine) != (type(theirs), theirs):
                return False
    return True


def never() -> list[Frame]:
    raise AssertionError("was made again")


def write_patient(folder: Path, seed: int = 0) -> None:
    """A patient in the preprocessed layout."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for phase in ("ED", "ES"):
        for kind, voxels in (("img", random.random((20, 24, 3))), ("seg", random.integers(0, 4, (20, 24, 3)))):
            image = nib.Nifti1Image(voxels.astype(np.float32), np.diag([1.4, 1.5, 9, 1]))
            nib.save(image, folder / f"{phase}_{kind}.nii.gz")


def age(folder: Path) -> None:
    """Let a folder's files be as old as files are that nobody is writing."""
    for path in Path(folder).rglob("*"):
        os.utime(path, (1e9, 1e9))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three patients, and another data set with one."""
    for seed, patient in enumerate(("A", "B", "C")):
        write_patient(tmp_path / "acdc" / patient, seed)
    write_patient(tmp_path / "other" / "D", 3)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


# Entries


def test_what_was_kept_comes_back_bit_for_bit_and_in_every_field(folder: Path) -> None:
    assert same(Cache(folder).frames(lambda: FRAMES, "source"), FRAMES)
    kept = Cache(folder).frames(never, "source")
    assert same(kept, FRAMES)
    assert not same(kept, [*FRAMES[:-1], frame("008", depth=5, seed=3)])
    assert not same(kept, [*FRAMES[:-1], replace(FRAMES[-1], cropped={})])


def test_what_is_kept_is_mapped_and_writing_to_it_changes_no_file(folder: Path) -> None:
    Cache(folder).frames(lambda: FRAMES, "source")
    first = Cache(folder).frames(never, "source")[0]
    tensor = torch.as_tensor(first.image)  # without the warning that torch gives for arrays that may only be read
    assert isinstance(first.image.base.base, np.memmap)
    tensor.zero_()
    assert not first.image.any()
    assert same(Cache(folder).frames(never, "source"), FRAMES)


def test_another_source_or_parameter_is_another_entry(folder: Path) -> None:
    cache = Cache(folder)
    for number, (source, parameters) in enumerate([("a", {}), ("b", {}), ("a", {"size": 1}), ("a", {"size": 2})]):
        made = [frame(seed=number)]
        assert same(cache.frames(lambda made=made: made, source, **parameters), made)
    assert len(entries(folder)) == 4


def test_other_code_or_another_format_does_not_use_an_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(folder).frames(lambda: FRAMES, "source")
    for name, value in (("FORMAT", cache_module.FORMAT + 1), ("_CODE", ("split.py",))):
        with monkeypatch.context() as patched:
            patched.setattr(cache_module, name, value)
            cache_module._versions.cache_clear()
            with pytest.raises(AssertionError, match="made again"):
                Cache(folder).frames(never, "source")
    cache_module._versions.cache_clear()
    assert same(Cache(folder).frames(never, "source"), FRAMES)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", ["image.npy", "labels.npy", "frames.json", "digests.json"])
def test_a_damaged_entry_is_made_anew(folder: Path, file: Path, damage: Callable[[Path], None]) -> None:
    Cache(folder).frames(lambda: FRAMES, "source")
    (entry,) = entries(folder)
    damage(entry / file)
    with pytest.raises(AssertionError, match="made again"):
        Cache(folder).frames(never, "source")
    assert same(Cache(folder).frames(lambda: FRAMES, "source"), FRAMES)
    assert same(Cache(folder).frames(never, "source"), FRAMES)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing_that_looks_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def save(file: Path, array: np.ndarray) -> None:
        Path(file).write_bytes(b"half of it")
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", save)
        with pytest.raises(failure):
            Cache(folder).frames(lambda: FRAMES, "source")
    assert not list(folder.iterdir())


def test_a_lost_race_is_harmless(folder: Path) -> None:
    def make() -> list[Frame]:  # while another run makes the same
        Cache(folder).frames(lambda: FRAMES, "source")
        return FRAMES

    assert same(Cache(folder).frames(make, "source"), FRAMES)
    assert same(Cache(folder).frames(never, "source"), FRAMES)
    assert len(entries(folder)) == 1


def test_who_comes_second_keeps_what_is_there(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
        publish(tmp_path / name, tmp_path / "target")
    assert (tmp_path / "target" / "content").read_text() == "first"
    with pytest.raises(OSError, match="absent"):
        publish(tmp_path / "absent", tmp_path / "other")


def test_an_error_of_the_reader_passes_and_leaves_no_entry(folder: Path) -> None:
    def fail() -> list[Frame]:
        raise DataError("broken")

    with pytest.raises(DataError, match=r"^broken$"):
        Cache(folder).frames(fail, "source")
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_to_is_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    for source in ("a", "b"):
        assert same(cache.frames(lambda: FRAMES, source), FRAMES)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(tmp_path / "file" / "cache") in lines[0]
    assert "--no-cache" in lines[0]


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    cache = Cache(None)
    assert cache.fingerprint(tmp_path) is None
    assert same(cache.frames(lambda: FRAMES, "source"), FRAMES)
    with pytest.raises(AssertionError, match="made again"):
        cache.frames(never, "source")


# Fingerprints


def test_a_fingerprint_follows_what_is_read_and_which_files_there_are(data: Path, folder: Path) -> None:
    def fingerprint() -> str | None:
        return Cache(folder).fingerprint(data / "acdc", patients=("A", "B"))

    first = fingerprint()
    assert fingerprint() == first
    (data / "acdc" / "notes.txt").write_text("none of the reader's business")
    flip_a_bit(data / "acdc" / "C" / "ED_img.nii.gz")  # who is not read
    assert fingerprint() == first
    flip_a_bit(data / "acdc" / "B" / "ES_seg.nii.gz")
    second = fingerprint()
    (data / "acdc" / "C" / "ED_img.nii.gz").unlink()
    assert len({first, second, fingerprint()}) == 3


def test_a_copy_elsewhere_has_the_same_fingerprint(data: Path, folder: Path) -> None:
    write_patient(data / "copy" / "A")
    write_patient(data / "copy2" / "A")
    assert Cache(folder).fingerprint(data / "copy") == Cache(folder).fingerprint(data / "copy2")
    assert Cache(folder).fingerprint(data / "copy") != Cache(folder).fingerprint(data / "other")


def test_unchanged_files_are_looked_into_once(data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(data)
    monkeypatch.setattr(time, "time", lambda: os.stat(data).st_ctime + 100)
    looked = []
    digest = cache_module._digest
    monkeypatch.setattr(cache_module, "_digest", lambda path: looked.append(path) or digest(path))
    first = Cache(folder).fingerprint(data / "acdc")
    assert len(looked) == 12
    assert Cache(folder).fingerprint(data / "acdc") == first
    assert len(looked) == 12
    changed = data / "acdc" / "A" / "ED_img.nii.gz"
    flip_a_bit(changed)
    os.utime(changed, (1e9, 1e9))  # the size and the time of writing are as they were
    assert Cache(folder).fingerprint(data / "acdc") != first
    assert looked[12:] == [changed]
    (folder / "digests.json").write_text("{")
    assert Cache(folder).fingerprint(data / "acdc") != first
    assert len(looked) == 25


def test_a_file_that_was_just_written_is_not_trusted(data: Path, folder: Path) -> None:
    Cache(folder).fingerprint(data / "acdc")
    assert not (folder / "digests.json").exists()


def test_what_a_reader_does_not_open_need_only_be_there(tmp_path: Path, folder: Path) -> None:
    paths = make_phantom(tmp_path, acdc_patients=["001"], mnms_subjects=1)
    cache = Cache(folder)

    def fingerprints() -> tuple[str | None, str | None]:
        acdc = cache.fingerprint(paths.acdc, patients=("001",))
        return acdc, cache.fingerprint(paths.mnms, part="Training/Labeled")

    first = fingerprints()
    for path in [*paths.acdc.rglob("*_4d.nii.gz"), *paths.mnms.glob("Training/Unlabeled/*/*.nii.gz")]:
        flip_a_bit(path)
    assert fingerprints() == first
    for path in [paths.acdc / "training/patient001/Info.cfg", *paths.mnms.glob("*.csv")]:
        flip_a_bit(path)
    assert not {*fingerprints()} & {*first}


def test_unpacked_volumes_are_part_of_a_fingerprint(tmp_path: Path, folder: Path) -> None:
    root = write_acdc(tmp_path / "acdc", suffix=".nii")
    (root / "training/patient001/patient001_4d.nii").write_bytes(b"not read")
    first = Cache(folder).fingerprint(root, patients=("001",))
    flip_a_bit(root / "training/patient002/patient002_frame01.nii")
    flip_a_bit(root / "training/patient001/patient001_4d.nii")
    assert Cache(folder).fingerprint(root, patients=("001",)) == first
    flip_a_bit(root / "training/patient001/patient001_frame01.nii")
    assert Cache(folder).fingerprint(root, patients=("001",)) != first


@pytest.mark.parametrize("name", ["Info.cfg", "patient001_frame01.nii.gz"])
@pytest.mark.parametrize("what", ["pipe", "socket", "folder", "link to a device"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, folder: Path, what: str, name: str) -> None:
    root = write_acdc(tmp_path / "acdc")
    in_place_of(root / "training/patient001" / name, what)
    assert Cache(folder).fingerprint(root) is None
    (folder / "digests.json").parent.mkdir()
    (folder / "digests.json").write_text("{}")
    in_place_of(folder / "digests.json", what)
    assert Cache(folder).fingerprint(root) is None


def test_an_entry_with_a_pipe_in_it_is_made_anew(folder: Path) -> None:
    for name in ("image.npy", "frames.json", "digests.json"):
        Cache(folder).frames(lambda: FRAMES, "source")
        (entry,) = entries(folder)
        in_place_of(entry / name, "pipe")
        with pytest.raises(AssertionError, match="made again"):
            Cache(folder).frames(never, "source")
        assert same(Cache(folder).frames(lambda: FRAMES, "source"), FRAMES)


def test_a_file_of_more_bytes_than_are_read_is_not_digested(tmp_path: Path, folder: Path) -> None:
    root = write_acdc(tmp_path / "acdc")
    os.truncate(root / "training/patient001/patient001_frame01.nii.gz", MAX_FILE_BYTES + 1)
    assert Cache(folder).fingerprint(root) is None


def test_a_study_of_unpacked_volumes_is_that_of_packed_ones(tmp_path: Path, folder: Path) -> None:
    packed = study_of(write_acdc(tmp_path / "packed"), None)
    root = write_acdc(tmp_path / "unpacked")
    for path in sorted(root.rglob("*.nii.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    for _ in range(2):
        unpacked = study_of(root, Cache(folder))
        assert unpacked.available == packed.available == {"001", "002", "003"}
        assert same(unpacked.training(0), packed.training(0))


def study_of(root: Path, cache: Cache | None) -> Study:
    made = Study(Sources(root, None, {}), TINY, None, cache)
    made.load([0])
    return made


# A study


def study(data: Path, cache: Cache | None, preset: Preset = TINY) -> Study:
    made = Study(Sources(data / "acdc", None, {"Other": data / "other"}), preset, None, cache)
    made.load([0])
    return made


def everything(made: Study) -> dict[str, list[Frame]]:
    plain = {"training": made.training(0), "validation": made.validation(0)}
    chosen_by = {f"chosen by {name}": frames for name, frames in made.to_choose_by(0).items()}
    return {**plain, **chosen_by, **made.tests(0)}


def counting(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count what is read, and what is corrupted how often."""
    calls = {"read": 0, "corrupted": 0}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        call.__name__ = function.__name__
        return call

    for name, function in (("read", "read_acdc"), ("read", "read_preprocessed"), ("corrupted", "corrupt")):
        monkeypatch.setattr(study_module, function, counted(name, getattr(study_module, function)))
    monkeypatch.setattr(shifts_module, "shift", counted("corrupted", shifts_module.shift))
    return calls


@pytest.mark.parametrize("halve", [True, False])
def test_a_study_is_the_same_with_and_without_a_cache_and_is_read_once(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, halve: bool
) -> None:
    pytest.importorskip("torchio")
    preset = replace(TINY, halve=halve)
    plain = everything(study(data, None, preset))
    calls = counting(monkeypatch)
    cold = study(data, Cache(folder), preset)
    assert everything(cold).keys() == plain.keys()
    assert all(same(frames, plain[name]) for name, frames in everything(cold).items())
    assert calls == {"read": 4, "corrupted": 2 * 2 * len(PARAMETERS) + 2 * len(SHIFTS) * len(SEVERITIES)}
    warm = study(data, Cache(folder), preset)
    assert all(same(frames, plain[name]) for name, frames in everything(warm).items())
    assert calls == {"read": 4, "corrupted": 2 * 2 * len(PARAMETERS) + 2 * len(SHIFTS) * len(SEVERITIES)}
    assert warm.notes(0) == cold.notes(0)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, {"read": 0, "corrupted": 0}),
        ({"batch_size": 2}, {"read": 0, "corrupted": 0}),
        ({"corruption_draws": 3}, {"read": 0, "corrupted": 8}),
        ({"corruption_spacing": "unit"}, {"read": 0, "corrupted": 16}),
        ({"halve": False}, {"read": 0, "corrupted": 16 + 42}),
        ({"image_size": 36}, {"read": 4, "corrupted": 16 + 42}),
    ],
)
def test_what_a_setting_changes_is_made_again_and_nothing_else(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], again: dict[str, int]
) -> None:
    pytest.importorskip("torchio")
    everything(study(data, Cache(folder)))
    calls = counting(monkeypatch)
    preset = replace(TINY, **change)
    found = everything(study(data, Cache(folder), preset))
    assert calls == again
    plain = everything(study(data, None, preset))
    assert all(same(frames, plain[name]) for name, frames in found.items())


def test_a_corruption_of_other_parameters_is_made_again(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchio")
    study(data, Cache(folder)).tests(0)
    calls = counting(monkeypatch)
    bias = ("RandomBiasField", {"coefficients": (-0.9, 0.9), "order": 3})
    monkeypatch.setitem(PARAMETERS, "RandBias", bias)
    study(data, Cache(folder)).tests(0)
    assert calls == {"read": 0, "corrupted": 4}


def test_a_recipe_tells_corruptions_and_libraries_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchio")
    kinds = [("RandBias", 0, "voxel"), ("RandSpike", 0, "voxel"), ("RandBias", 1, "voxel"), ("RandBias", 0, "unit")]
    recipes = [recipe(name, draw, spacing=spacing) for name, draw, spacing in kinds]
    monkeypatch.setattr("cardiac.data.corruptions.version", lambda package: "0")
    recipes.append(recipe("RandBias", 0, spacing="voxel"))
    assert len({json.dumps(one) for one in recipes}) == 5


def test_changed_data_are_read_again(data: Path, folder: Path) -> None:
    study(data, Cache(folder))
    write_patient(data / "new" / "A", 9)
    for path in (data / "new" / "A").iterdir():
        for patient in ("A", "B", "C"):
            (data / "acdc" / patient / path.name).write_bytes(path.read_bytes())
    assert same(study(data, Cache(folder)).training(0), study(data, None).training(0))


@pytest.mark.parametrize("break_it", [lambda path: path.write_bytes(path.read_bytes()[:200]), Path.unlink])
def test_broken_data_are_refused_in_the_same_words_with_a_cache(
    data: Path, folder: Path, break_it: Callable[[Path], object]
) -> None:
    study(data, Cache(folder))
    break_it(data / "acdc" / "B" / "ES_seg.nii.gz")
    messages = []
    for cache in (None, Cache(folder)):
        with pytest.raises(DataError, match="ES_seg") as error:
            study(data, cache)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_released_layouts_come_back_as_they_were_read(tmp_path: Path, folder: Path) -> None:
    paths = make_phantom(tmp_path, acdc_patients=["001", "002", "003"], mnms_subjects=2)
    sources = Sources(paths.acdc, paths.mnms, {})
    for _ in range(2):
        made = Study(sources, TINY, None, Cache(folder))
        made.load([0])
        split = made.split(0)
        assert same(made._read(split.test, 32), read_acdc(paths.acdc, patients=split.test, size=32))
        full = replace(TINY, halve=False)
        mnms = Study(sources, full, None, Cache(folder))
        mnms.load([0])
        assert same(mnms._others["M&Ms"], read_mnms(paths.mnms, size=32))


def test_a_corrupted_frame_does_not_depend_on_where_its_image_lies(folder: Path) -> None:
    pytest.importorskip("torchio")
    Cache(folder).frames(lambda: FRAMES, "source")
    for one, other in zip(FRAMES, Cache(folder).frames(never, "source"), strict=True):
        assert same([corrupt(one, "RandMotion", 0)], [corrupt(other, "RandMotion", 0)])
