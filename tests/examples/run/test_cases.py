from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cardiac.data.preprocess import Labels
from cardiac.data.readers import Frame
from cardiac.run.cases import KEPT, Cases, SliceScore, by_third, positions, read_slices, slice_dice
from study.run.cases import BestAndWorst, read_cases
from study.run.metrics import dice, frame_scores

DEPTH = 4


def frame_of(
    labels: Labels,
    *,
    patient: str = "007",
    phase: str = "ED",
    structures: tuple[str, ...] = ("LV", "MYO", "RV"),
    group: dict[str, str] | None = None,
) -> Frame:
    image = np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape)
    return Frame(patient, phase, image, labels, (10.0, 1.4, 1.4), structures, group or {})


def heart(*sizes: int) -> Labels:
    """A stack of slices with as many rows of each label as `sizes` says."""
    labels = np.zeros((len(sizes), 12, 6), np.uint8)
    for number, size in enumerate(sizes):
        for value in (1, 2, 3):
            labels[number, (value - 1) * size : value * size] = value
    return labels


def watch(cases: Cases, column: str, frame: Frame, stages: Mapping[str, Tensor]) -> None:
    """Show a frame as `evaluate` does."""
    cases(column, frame, stages, {stage: frame_scores(predicted, frame) for stage, predicted in stages.items()})


def shifted(labels: Labels, by: int) -> Tensor:
    return torch.as_tensor(np.roll(labels, by, axis=1))


def test_position_runs_from_the_wide_end_to_the_narrow_one_over_labelled_slices() -> None:
    assert positions(heart(0, 4, 3, 1, 0)) == {1: 0, 2: 0.5, 3: 1}
    assert positions(heart(1, 2, 4, 0)) == {0: 1, 1: 0.5, 2: 0}
    assert positions(heart(0, 2, 0)) == {1: 0.5}
    assert positions(heart(0, 0)) == {}


def test_a_slice_is_scored_as_a_volume_of_its_own() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (DEPTH, 5, 6)).astype(np.uint8)
    predicted = torch.as_tensor(np.random.default_rng(1).integers(0, 4, labels.shape))
    for value, found in enumerate(slice_dice(predicted, frame_of(labels)).values(), start=1):
        assert found == pytest.approx([dice(predicted[[i]], torch.as_tensor(labels[[i]]), value) for i in range(DEPTH)])


def test_a_slice_without_a_structure_on_either_side_has_no_score_for_it() -> None:
    labels = heart(2, 2)
    labels[0, labels[0] == 3] = 0
    found = slice_dice(torch.as_tensor(labels), frame_of(labels))
    assert math.isnan(found["RV"][0])
    assert found["RV"][1] == found["LV"][0] == 1


def test_slices_hold_every_stage_and_labelled_slice_and_repetitions_are_averaged() -> None:
    labels, cases = heart(3, 2, 0), Cases()
    for by in (0, 12 // 2):
        watch(cases, "ACDC", frame_of(labels), {"FTN": shifted(labels, 0), "FTN+STN": shifted(labels, by)})
    slices = cases.slices()
    assert [(s.stage, s.slice, s.position) for s in slices] == [
        (stage, *place) for stage in ("FTN", "FTN+STN") for place in ((0, 0.0), (1, 1.0))
    ]
    assert slices[0].LV == 1
    assert slices[2].LV == 0.5  # of 1 and 0


def test_what_a_data_set_does_not_label_is_not_scored() -> None:
    cases, labels = Cases(), heart(2)
    watch(cases, "SCD", frame_of(labels, structures=("LV", "MYO")), {"FTN": torch.as_tensor(labels)})
    (score,) = cases.slices()
    assert (score.LV, score.MYO) == (1, 1)
    assert math.isnan(score.RV)


def several(patients: int) -> Cases:
    """Cases of patients who are segmented the worse the later they come; the column has two repetitions."""
    cases = Cases()
    for patient in range(patients):
        labels = heart(4, 3, 1)
        for extra in (0, 1):
            predicted = torch.as_tensor(labels).clone()
            predicted.view(-1)[: 5 * patient + extra] = 0
            watch(
                cases, "ACDC", frame_of(labels, patient=f"{patient:03}"), {"FTN": predicted * 0, "FTN+STN": predicted}
            )
    return cases


def test_the_best_and_the_worst_frames_are_kept_each_once() -> None:
    kept = several(10).cases()
    assert [case.patient for case in kept] == ["009", "008", "007", "002", "001", "000"]
    assert len(kept) == 2 * KEPT
    assert [case.dice for case in kept] == sorted(case.dice for case in kept)
    assert {case.stage for case in kept} == {"FTN+STN"}
    assert kept[-1].dice == 1


def test_a_case_shows_the_middle_labelled_slice() -> None:
    labels, cases = heart(0, 4, 3, 1), Cases()
    frame = frame_of(labels)
    watch(cases, "ACDC", frame, {"FTN": shifted(labels, 1)})
    (case,) = cases.cases()
    assert np.array_equal(case.labels, labels[2])
    assert np.array_equal(case.prediction, np.roll(labels[2], 1, axis=0))
    assert case.image == pytest.approx(frame.image[2] * 255, abs=0.5)


def test_a_case_has_the_mean_dice_that_its_last_stage_scored() -> None:
    cases, labels = Cases(), heart(4, 3)
    maps = dict.fromkeys(("FTN", "FTN+STN"), torch.as_tensor(labels))
    scores = {("LV", "dice"): 0.25, ("RV", "dice"): 0.75, ("LV", "hd95"): 9.0}
    cases("ACDC", frame_of(labels), maps, {"FTN": {("LV", "dice"): 1.0}, "FTN+STN": scores})
    (case,) = cases.cases()
    assert case.dice == 0.5


def test_a_frame_with_nothing_to_score_is_no_case() -> None:
    cases, labels = Cases(), heart(0, 0)
    watch(cases, "ACDC", frame_of(labels), {"FTN": torch.as_tensor(labels)})
    assert cases.cases() == cases.slices() == []


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    cases = several(4)
    cases.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.npz", "slices.csv"]
    for ours, theirs in zip(read_slices(tmp_path / "slices.csv"), cases.slices(), strict=True):
        assert ours[:6] == theirs[:6]
        assert ours[6:] == pytest.approx(theirs[6:], abs=1e-4, nan_ok=True)
    for ours, theirs in zip(read_cases(tmp_path / "cases.npz"), cases.cases(), strict=True):
        assert ours[:5] == theirs[:5]
        assert all(np.array_equal(one, other) for one, other in zip(ours[5:], theirs[5:], strict=True))


def test_pictures_of_several_sizes_come_back_and_large_ones_are_thinned(tmp_path: Path) -> None:
    cases = BestAndWorst(1, side=12)
    for number, shape in enumerate([(1, 12, 6), (1, 7, 9), (1, 30, 24)]):
        labels = np.random.default_rng(number).integers(0, 2, shape).astype(np.uint8)
        watch(cases, f"column {number}", frame_of(labels, structures=("LV",)), {"Unet": torch.as_tensor(labels)})
        whole = labels[0]
    cases.save(tmp_path)
    found = read_cases(tmp_path / "cases.npz")
    assert [case.image.shape for case in found] == [(12, 6), (7, 9), (10, 8)]
    assert [case.column for case in found] == ["column 0", "column 1", "column 2"]
    assert np.array_equal(found[2].labels, whole[::3, ::3])
    assert all(np.array_equal(case.labels, case.prediction) for case in found)


def test_cases_that_an_earlier_version_kept_are_read(tmp_path: Path) -> None:
    cases = several(4)
    cases.save(tmp_path)
    with np.load(tmp_path / "cases.npz") as arrays:
        np.savez_compressed(tmp_path / "old.npz", **{name: arrays[name] for name in arrays if name != "shape"})
    for one, other in zip(read_cases(tmp_path / "old.npz"), cases.cases(), strict=True):
        assert all(np.array_equal(*both) for both in zip(one, other, strict=True))


def test_thirds_are_averaged_by_column_structure_and_vendor() -> None:
    def score(position: float, value: float, vendor: str = "") -> SliceScore:
        return SliceScore("FTN", "M&Ms", vendor, "007", "ED", 0, position, value, math.nan, 0.5)

    scores = [score(0.0, 0.2, "A"), score(0.3, 0.4), score(0.5, 0.6), score(1.0, 0.8)]
    found = by_third([*scores, scores[0]._replace(stage="FTN+STN", LV=9)], "FTN")
    assert found["M&Ms", "LV"] == pytest.approx([0.3, 0.6, 0.8])
    assert found["M&Ms/A", "LV"] == pytest.approx([0.2, math.nan, math.nan], nan_ok=True)
    assert all(map(math.isnan, found["M&Ms", "MYO"]))
