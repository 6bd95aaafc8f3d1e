"""What methods are chosen by."""

from __future__ import annotations

import pytest

from study.run.scores import Score
from study.run.validation import in_words, summary


def score(column: str, value: float, patient: str = "011", structure: str = "LV") -> Score:
    return Score("plain", 0, "FTN", column, patient, "ED", structure, "dice", value)


def test_the_figure_to_rank_by_is_the_mean_over_kinds_and_severities() -> None:
    scores = [score("ACDC", 0.9), score("ACDC", 0.7, "021")]
    scores += [score("Blur 1", 0.8), score("Blur 1", 0.6, "021"), score("Blur 2", 0.5), score("Gamma 1", 0.3)]
    found = summary(scores)
    assert found["patients"] == 2
    assert found["dice"] == pytest.approx(0.8)
    assert found["by shift"] == {"Blur 1": 0.7, "Blur 2": 0.5, "Gamma 1": 0.3}
    assert found["shifted dice"] == pytest.approx(0.5)
    assert in_words(found) == (
        "The network alone on 2 patients to choose by: Dice 0.800, and 0.500 under shifts that no test has."
    )


def test_structures_count_alike() -> None:
    scores = [score("ACDC", 1.0), score("Blur 1", 0.9), score("Blur 1", 0.7, "021"), score("Blur 1", 0.2, "021", "RV")]
    assert summary(scores)["shifted dice"] == pytest.approx((0.8 + 0.2) / 2)
