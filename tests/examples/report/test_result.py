"""What a page says about the result, from scores that are made up here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from study.report.comparison import Difference, compare
from study.report.result import dice_table, difference_table, forests, gain, headline
from study.report.tables import tabulate
from study.run.scores import Score


def scores_of(means: Mapping[tuple[str, str], float], *, stage: str = "FTN") -> list[Score]:
    """Scores by (method, column) of two draws; every other patient suits the cooperative method."""
    return [
        Score(method, draw, stage, column, f"{patient:03}", "ED", "LV", "dice", mean + 0.01 * draw + suits)
        for (method, column), mean in means.items()
        for draw in range(2)
        for patient in range(10)
        for suits in [(-1) ** patient * 0.02 * (method == "cooperative")]
    ]


BOTH = {
    ("standard", "ACDC"): 0.7,
    ("standard", "SCD"): 0.5,
    ("cooperative", "ACDC"): 0.702,
    ("cooperative", "SCD"): 0.55,
}
SWAPPED = {({"standard": "cooperative"}.get(m, "standard"), column): value for (m, column), value in BOTH.items()}


def said(scores: list[Score]) -> list[str]:
    return headline(tabulate(scores), compare(scores), "standard")


def test_the_headline_names_the_best_method_and_what_it_gains_where() -> None:
    scores = scores_of(BOTH)
    best, shifted, clean = said(scores)
    by_column = {row.column: row for row in compare(scores)}
    assert best == "The best average Dice is 0.631, by cooperative (FTN)."
    assert shifted.startswith(
        "On the shifted columns (all but ACDC), cooperative is 5.0 points ahead of standard (95 % "
    )
    assert clean.startswith(
        "On ACDC, there is no clear difference between cooperative and standard (+0.2 points, 95 % "
    )
    for sentence, column in ((shifted, "average (shifted)"), (clean, "ACDC")):
        words = gain(by_column[column])
        assert all(word in sentence for word in (words.interval, words.p, words.draws, "10 patients"))


def test_the_headline_compares_the_next_method_when_the_reference_is_best() -> None:
    best, shifted, clean = said([*scores_of(SWAPPED), *scores_of({("dropout", "SCD"): 0.3, ("dropout", "ACDC"): 0.3})])
    assert "by standard (FTN)" in best
    assert "cooperative is 5.0 points behind standard" in shifted
    assert "better in 0 of 2 draws" in shifted
    assert "no clear difference" in clean


def test_the_headline_compares_within_a_stage() -> None:
    scores = [*scores_of(BOTH), *scores_of({("standard", "ACDC"): 0.9, ("cooperative", "ACDC"): 0.5}, stage="FTN+STN")]
    best, clean = said(scores)
    assert "by standard (FTN+STN)" in best
    assert "cooperative is 40.0 points behind" in clean


def test_the_headline_says_so_when_there_is_nothing_to_compare_with() -> None:
    alone = scores_of({key: value for key, value in BOTH.items() if key[0] == "cooperative"})
    assert said(alone) == [
        "The best average Dice is 0.631, by cooperative (FTN); at this stage no method can be compared with standard."
    ]
    assert headline([], [], "standard") == ["Nothing is scored yet."]


def difference(
    mean: float,
    low: float | None,
    high: float | None,
    p: float | None,
    *,
    method: str = "cooperative",
    stage: str = "FTN",
    column: str = "ACDC",
) -> Difference:
    return Difference(method, "standard", stage, column, "dice", 9, mean, low, high, p, {0: mean, 1: -mean}, 1)


@pytest.mark.parametrize(
    ("low", "high", "p"),
    [(-0.001, 0.05, 0.01), (0.0, 0.05, 0.01), (0.01, 0.05, 0.05), (0.01, 0.05, None), (None, None, 0.01)],
)
def test_a_difference_is_clear_only_if_interval_and_test_both_say_so(
    low: float | None, high: float | None, p: float | None
) -> None:
    assert not difference(0.03, low, high, p).clear
    assert not difference(-0.03, low and -high, high and -low, p).clear
    assert "no clear difference" in headline(tabulate(scores_of(BOTH)), [difference(0.03, low, high, p)], "standard")[1]
    assert difference(0.03, 0.01, 0.05, 0.049).clear
    assert difference(-0.03, -0.05, -0.01, 0.049).clear


def test_what_is_undefined_or_small_is_put_into_words() -> None:
    assert gain(difference(-0.0312, None, None, None))[:4] == ("−3.1", "no interval", "no p", "1 of 2 draws")
    assert gain(difference(0.02, -0.01, 0.05, 2e-5))[:3] == ("+2.0", "−1.0 to +5.0", "p < 0.001")


def test_the_table_marks_the_best_of_each_column_and_shows_the_differences() -> None:
    scores = scores_of({**BOTH, ("standard", "RandBias"): 0.8, ("cooperative", "RandBias"): 0.7})
    columns, rows = dice_table(tabulate(scores), compare(scores))
    assert columns == ["ACDC", "SCD", "RandBias", "average"]
    (standard, theirs), (cooperative, ours) = rows
    assert (standard.method, cooperative.method) == ("standard", "cooperative")
    assert [entry.best for entry in theirs] == [False, False, True, True]
    assert [entry.best for entry in ours] == [True, True, False, False]
    by_column = {row.column: gain(row).points for row in compare(scores)}
    assert [entry.difference for entry in ours] == [by_column[column] for column in columns]
    assert [entry.difference for entry in theirs] == ["", "", "", ""]
    assert (ours[1].text, theirs[1].text) == ("0.555 ± 0.007", "0.505 ± 0.007")


def test_differences_are_laid_out_by_method_stage_and_column() -> None:
    found = [
        difference(0.01, None, None, None),
        difference(0.02, None, None, None, column="M&Ms/A"),
        difference(0.03, None, None, None, stage="FTN+STN"),
        difference(0.04, None, None, None, method="dropout", column="SCD"),
    ]
    columns, rows = difference_table(found)
    assert columns == ["ACDC", "SCD"]
    assert [(method, stage, [one and one.points for one in gains]) for method, stage, gains in rows] == [
        ("cooperative", "FTN", ["+1.0", None]),
        ("cooperative", "FTN+STN", ["+3.0", None]),
        ("dropout", "FTN", [None, "+4.0"]),
    ]
    columns, rows = difference_table(found, parts=True)
    assert columns == ["M&Ms/A"]
    assert rows[0][2] == [gain(found[1])]


def test_forest_plots_show_the_last_stage_of_each_method_on_one_scale() -> None:
    found = [
        difference(0.01, 0.0, 0.02, 0.04),
        difference(0.03, None, None, None, stage="FTN+STN"),
        difference(0.02, 0.01, 0.4, 0.04, stage="FTN+STN", column="M&Ms/A"),
        difference(-0.04, -0.08, 0.01, 0.5, method="dropout", column="SCD"),
    ]
    one, other = forests(found, {"cooperative": "#123456", "dropout": "#654321"}, "standard")
    assert "cooperative (FTN+STN)" in one
    assert "#123456" in one
    assert "ACDC" in one
    assert "M&amp;Ms/A" not in one
    assert "dropout (FTN)" in other
    ticks = [re.findall(r">(−?[\d.]+)</text>", svg) for svg in (one, other)]
    assert ticks[0] == ticks[1] != []
    assert forests([], {}, "standard") == []
