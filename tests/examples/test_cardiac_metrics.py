import math

import numpy as np
import pytest
import torch
from cardiac.data import Frame
from cardiac.metrics import Score, column_mean, count_cropped, dice, frame_scores, segment, summarise


def frame_of(labels, *, structures=("LV", "MYO", "RV"), patient="007", phase="ED", cropped=None):
    return Frame(
        patient=patient,
        phase=phase,
        image=np.zeros(labels.shape, np.float32),
        labels=labels,
        spacing=(10.0, 1.36719, 1.36719),
        structures=structures,
        group={},
        cropped=cropped or {},
    )


def score(structure, value, *, patient="007", phase="ED"):
    return Score("standard", 0, "FTN", "ACDC", patient, phase, structure, "dice", value)


def test_dice_equals_a_count_voxel_by_voxel():
    random = np.random.default_rng(0)
    ours, theirs = random.integers(0, 4, (3, 5, 6)), random.integers(0, 4, (3, 5, 6))
    for value in (1, 2, 3):
        both = mine = their = 0
        for index in np.ndindex(ours.shape):
            mine += ours[index] == value
            their += theirs[index] == value
            both += ours[index] == value and theirs[index] == value
        assert dice(torch.as_tensor(ours), torch.as_tensor(theirs), value) == pytest.approx(2 * both / (mine + their))


def test_dice_is_taken_over_the_volume_not_averaged_over_slices():
    ours, theirs = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.uint8)
    ours[0], theirs[0] = 1, 1
    theirs[1, 0, 0] = 1
    assert dice(ours, theirs, 1) == pytest.approx(2 * 16 / (16 + 17))


def test_a_structure_missing_on_one_side_scores_zero_and_on_both_sides_nothing():
    empty, full = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert dice(empty, full, 1) == 0
    assert dice(full, empty, 1) == 0
    assert math.isnan(dice(empty, empty, 1))


def test_structures_that_a_data_set_does_not_label_are_left_out():
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, :2], labels[0, 2] = 1, 2
    predicted = torch.full((1, 4, 4), 3)
    assert frame_scores(predicted, frame_of(labels, structures=("LV", "MYO"))) == {"LV": 0, "MYO": 0}


def test_a_structure_in_neither_volume_is_left_out():
    labels = np.ones((1, 4, 4), np.uint8)
    assert frame_scores(torch.ones(1, 4, 4), frame_of(labels)) == {"LV": 1}


def test_the_mean_weighs_patients_alike_however_many_frames_they_have():
    scores = [score("LV", 0.2), score("LV", 0.4, phase="ES"), score("LV", 0.9, patient="008")]
    assert column_mean(scores) == {"LV": pytest.approx((0.3 + 0.9) / 2)}


def test_the_mean_keeps_structures_apart():
    assert column_mean([score("LV", 0.5), score("RV", 0.1)]) == {"LV": 0.5, "RV": 0.1}


def test_the_spread_over_draws_is_the_sample_deviation_and_absent_for_one_draw():
    assert summarise([0.5]) == (0.5, None)
    mean, spread = summarise([0.2, 0.4, 0.9])
    assert mean == pytest.approx(0.5)
    assert spread == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))


def test_labels_cut_off_by_the_crop_are_added_up_per_patient():
    labels = np.zeros((1, 4, 4), np.uint8)
    frames = [
        frame_of(labels, patient="046", cropped={"LV": 0, "RV": 5}),
        frame_of(labels, patient="046", phase="ES", cropped={"RV": 2}),
        frame_of(labels, patient="007", cropped={"LV": 0}),
    ]
    assert count_cropped(frames) == {"046": {"RV": 7}}


class Bright(torch.nn.Module):
    """Calls bright voxels 1; its refinement calls everything 2."""

    def forward(self, images):
        return torch.cat([1 - images, images, torch.full_like(images, -1)], dim=1)

    def refine(self, logits):
        return torch.stack([torch.full_like(logits[:, 0], value) for value in (0, 0, 1)], dim=1)


def test_all_around_what_a_model_sees_is_background():
    frame = frame_of(np.zeros((2, 7, 8), np.uint8))
    frame.image[:, 2, 2:] = 1
    stages = segment(Bright(), frame, torch.device("cpu"), side=4)
    expected = torch.zeros(2, 7, 8, dtype=torch.long)
    expected[:, 2, 2:6] = 1
    assert torch.equal(stages["FTN"], expected)
    assert stages["FTN+STN"].sum() == 2 * 2 * 4 * 4
    assert stages["FTN+STN"][:, 1:5, 2:6].all()
