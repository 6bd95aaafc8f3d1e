from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import bootstrap, wilcoxon

from study.report.comparison import SHIFTED, Difference, compare, comparison_grid, reference_of
from study.run.scores import AVERAGE, Score


def score(
    method: str,
    value: float,
    *,
    draw: int = 0,
    column: str = "ACDC",
    patient: str = "007",
    phase: str = "ED",
    structure: str = "LV",
    metric: str = "dice",
) -> Score:
    return Score(method, draw, "FTN", column, patient, phase, structure, metric, value)


def both(difference: float, **where: Any) -> list[Score]:
    """The scores of a pair that differs by so much."""
    return [score("standard", 0.5, **where), score("cooperative", 0.5 + difference, **where)]


def many(differences: Sequence[float], **where: Any) -> list[Score]:
    """A pair for each patient."""
    return [s for patient, value in enumerate(differences) for s in both(value, patient=f"{patient:03}", **where)]


def compared(scores: list[Score], **options: Any) -> dict[str, Difference]:
    """The rows of a comparison by column."""
    return {row.column: row for row in compare(scores, **options)}


def mean_of(scores: list[Score], metric: str) -> float:
    """The mean difference of a metric on ACDC."""
    return next(row.mean for row in compare(scores) if row.metric == metric and row.column == "ACDC")


@pytest.fixture
def differences() -> npt.NDArray[np.float64]:
    return np.random.default_rng(0).normal(0.03, 0.05, 20)


def test_the_mean_is_over_patients_however_many_values_they_have() -> None:
    scores = [
        *both(0.1),
        *both(0.3, phase="ES"),
        *both(0.2, structure="RV"),
        *both(0.2, draw=1),
        *both(-0.2, patient="8"),
    ]
    row = compared(scores)["ACDC"]
    assert (row.method, row.reference, row.stage, row.metric) == ("cooperative", "standard", "FTN", "dice")
    assert row.patients == 2
    assert row.mean == pytest.approx((0.2 - 0.2) / 2)


def test_only_what_both_methods_have_is_compared() -> None:
    scores = [*both(0.1), score("cooperative", 0.9, phase="ES"), score("standard", 0.9, patient="008")]
    row = compared(scores)["ACDC"]
    assert row.patients == 1
    assert row.mean == pytest.approx(0.1)


def test_the_test_is_wilcoxons_over_patients(differences: Sequence[float]) -> None:
    assert compared(many(differences))["ACDC"].p == pytest.approx(wilcoxon(differences).pvalue)


def test_the_interval_is_scipys_percentile_bootstrap_but_for_chance(differences: Sequence[float]) -> None:
    row = compared(many(differences), resamples=20000)["ACDC"]
    expected = bootstrap([differences], np.mean, method="percentile", n_resamples=20000, rng=1).confidence_interval
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=0.002)
    assert row.low < row.mean < row.high


def test_intervals_depend_on_the_seed_and_on_nothing_else(differences: Sequence[float]) -> None:
    scores = many(differences)
    alone = compared(scores)["ACDC"]
    assert compared([*many(differences[:5], column="SCD"), *scores])["ACDC"] == alone
    assert compared(scores, seed=1)["ACDC"].low != alone.low


def test_averages_weigh_columns_alike_and_leave_parts_of_them_out() -> None:
    scores = [
        *many([0.1, 0.3]),
        *many([0.0, 0.2], column="RandSpike"),
        *many([0.6] * 10, column="M&Ms"),
        *many([0.9] * 4, column="M&Ms/A"),
    ]
    rows = compared(scores)
    assert list(rows) == ["ACDC", "RandSpike", "M&Ms", SHIFTED, AVERAGE, "M&Ms/A"]
    assert rows[AVERAGE].mean == pytest.approx((0.2 + 0.1 + 0.6) / 3)
    assert rows[SHIFTED].mean == pytest.approx((0.1 + 0.6) / 2)


def test_a_patient_is_one_patient_under_all_corruptions_and_another_in_another_data_set() -> None:
    scores = [*many([0.1, 0.3]), *many([0.2, 0.2], column="RandSpike"), *many([0.6, 0.5], column="SCD")]
    assert compared(scores)[AVERAGE].patients == 4
    assert compared(scores)[SHIFTED].patients == 4


def test_patients_are_drawn_within_their_data_set() -> None:
    # Nobody differs within a data set, so no way to draw patients from it changes its mean.
    row = compared([*many([0.1] * 3), *many([0.7] * 5, column="SCD")])[AVERAGE]
    assert (row.low, row.high) == pytest.approx((0.4, 0.4))


def test_draws_are_shown_one_by_one() -> None:
    scores = [*many([0.1, 0.3]), *many([-0.1, -0.2], draw=1), *many([0.5, 0.1], draw=2)]
    row = compared(scores)["ACDC"]
    assert row.draws == pytest.approx({0: 0.2, 1: -0.15, 2: 0.3})
    assert row.better == 2


@pytest.mark.parametrize("metric", ["hd95", "assd", "missed"])
def test_fewer_millimetres_and_misses_are_better(metric: str) -> None:
    scores = [*both(0.0), *both(-0.3, metric=metric)]
    row = next(row for row in compare(scores) if row.metric == metric and row.column == "ACDC")
    assert row.mean == pytest.approx(-0.3)
    assert row.better == 1


def test_what_nobody_missed_is_not_compared() -> None:
    scores = [*both(0.1), score("standard", 0.0, metric="missed"), score("cooperative", 0.0, metric="missed")]
    assert {row.metric for row in compare(scores)} == {"dice"}


@pytest.mark.parametrize("who", ["standard", "cooperative"])
def test_distances_are_compared_only_where_neither_method_missed_a_repetition(who: str) -> None:
    # A frame's distance is a mean over the repetitions that have one: if some are missed, those of two methods differ.
    scores = [*both(-0.3, metric="hd95"), *both(0.1), *both(5.0, metric="hd95", patient="missed")]
    assert mean_of(scores, "hd95") == pytest.approx((5.0 - 0.3) / 2)
    scores.append(score(who, 1 / 3, metric="missed", patient="missed"))
    assert mean_of(scores, "hd95") == pytest.approx(-0.3)


def test_an_average_needs_all_columns() -> None:
    scores = [*both(0.1), *both(0.1, column="SCD"), *both(-2.0, metric="hd95")]
    assert {row.column for row in compare(scores) if row.metric == "hd95"} == {"ACDC"}


def test_every_method_is_compared_with_the_reference_that_is_named() -> None:
    scores = [score(method, value) for method, value in (("standard", 0.5), ("cooperative", 0.7), ("dropout", 0.4))]
    assert [row.method for row in compare(scores) if row.column == "ACDC"] == ["cooperative", "dropout"]
    means = {row.method: row.mean for row in compare(scores, "cooperative") if row.column == "ACDC"}
    assert means == pytest.approx({"standard": -0.2, "dropout": -0.3})
    assert compare(scores, "absent") == []


@pytest.mark.parametrize(
    ("trained", "reference"),
    [
        (("cooperative", "standard", "plain"), "plain"),
        (("cooperative", "standard"), "standard"),
        (("plain", "mixup"), "plain"),
        (("cooperative", "mixup"), "standard"),
    ],
)
def test_the_network_alone_is_the_reference_where_it_is_there(trained: tuple[str, ...], reference: str) -> None:
    scores = [score(method, 0.5) for method in trained]
    assert reference_of(scores) == reference
    expected = {(name, reference) for name in trained if name != reference} if reference in trained else set()
    assert {(row.method, row.reference) for row in compare(scores)} == expected


def test_what_a_shape_prior_corrected_is_compared_with_the_network_alone_of_a_reference_without_one() -> None:
    scores = [
        score("plain", 0.5),
        score("cooperative", 0.7),
        score("cooperative", 0.8)._replace(stage="FTN+STN"),
        score("cooperative", 0.9)._replace(stage="Unet+STN"),  # another network
    ]
    means = {row.stage: row.mean for row in compare(scores) if row.column == "ACDC"}
    assert means == pytest.approx({"FTN": 0.2, "FTN+STN": 0.3})


def test_a_reference_that_has_the_stage_is_compared_at_it() -> None:
    scores = [score(name, value) for name, value in (("standard", 0.5), ("cooperative", 0.7))]
    scores += [one._replace(stage="FTN+STN", value=one.value - 0.3 * (one.method == "standard")) for one in scores]
    assert {row.stage: row.mean for row in compare(scores)} == pytest.approx({"FTN": 0.2, "FTN+STN": 0.5})


def test_no_difference_at_all_has_no_p_and_one_patient_no_interval() -> None:
    row = compared(many([0.0] * 6))["ACDC"]
    assert (row.mean, row.low, row.high, row.p) == (0, 0, 0, None)
    row = compared(both(0.1))["ACDC"]
    assert (row.low, row.high, row.p) == (None, None, 1)


def test_the_smallest_p_of_five_patients_is_above_a_twentieth() -> None:
    assert compared(many([0.1, 0.2, 0.3, 0.4, 0.5]))["ACDC"].p == pytest.approx(2 / 2**5)
    assert compared(many([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))["ACDC"].p == pytest.approx(2 / 2**6)


def test_a_comparison_is_shown_with_signs_units_and_dashes() -> None:
    rows = [row for row in compare([*both(0.25), *both(-0.125, draw=1)]) if row.column == "ACDC"]
    head, line = comparison_grid(rows)
    assert dict(zip(head, line, strict=True)) == {
        "method": "cooperative",
        "stage": "FTN",
        "column": "ACDC",
        "patients": "1",
        "difference": "+0.062",
        "95 % interval": "-",
        "p": "1",
        "by draw": "+0.250, -0.125",
        "better in": "1 of 2 draws",
    }
