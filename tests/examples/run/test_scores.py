"""The file of scores, and their means."""

from __future__ import annotations

import pytest
from cardiac.run.scores import Score, column_mean, read_scores, write_scores


def test_scores_come_back_from_a_file_whose_header_is_fixed(tmp_path):
    file = tmp_path / "scores.csv"
    line = Score("cooperative", 0, "FTN+STN", "RandSpike", "007", "ED", "LV", "dice", 0.83)
    write_scores(file, [line])
    assert file.read_text().splitlines() == [
        "method,draw,stage,column,patient,phase,structure,metric,value",
        "cooperative,0,FTN+STN,RandSpike,007,ED,LV,dice,0.83",
    ]
    assert read_scores(file) == [line]


def score(structure, value, *, patient="007", phase="ED"):
    return Score("standard", 0, "FTN", "ACDC", patient, phase, structure, "dice", value)


def test_the_mean_weighs_patients_alike_however_many_frames_they_have():
    scores = [score("LV", 0.2), score("LV", 0.4, phase="ES"), score("LV", 0.9, patient="008")]
    assert column_mean(scores) == {"LV": pytest.approx((0.3 + 0.9) / 2)}


def test_the_mean_keeps_structures_apart():
    assert column_mean([score("LV", 0.5), score("RV", 0.1)]) == {"LV": 0.5, "RV": 0.1}
