"""Whether validation ranks recipes as the tests do: tables and correlations of scores that are made up here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from study.report import ranking
from study.report.ranking import Cohort, correlate
from study.report.tables import tabulate
from study.run.scores import FILE, VALIDATION, Score, write_scores

RECIPES = {"plain": (0.80, 0.70, 0.72), "standard": (0.78, 0.65, 0.68), "mixup": (0.79, 0.75, 0.71)}
"""Validation as it is, under shifts, and the tests' shifts."""


def scores_of(method: str, columns: Mapping[str, float], patients: Sequence[str], draws: Sequence[int]) -> list[Score]:
    """Scores whose means are those given: patients differ, and so do structures."""
    spread = np.linspace(-0.05, 0.05, len(patients))
    return [
        Score(method, draw, stage, column, patient, phase, structure, "dice", mean + away + worse - (stage != "Unet"))
        for draw in draws
        for stage in ("Unet", "Unet+STN")
        for column, mean in columns.items()
        for patient, away in zip(patients, spread, strict=True)
        for phase in ("ED", "ES")
        for structure, worse in (("LV", 0.02), ("RV", -0.02))
    ]


def write_run(folder: Path, recipes: Mapping[str, Sequence[float]], draws: Sequence[int] = (0,)) -> Path:
    folder.mkdir()
    validated: list[Score] = []
    tested: list[Score] = []
    for method, (clean, shifted, tests) in recipes.items():
        columns = {"ACDC": clean, "Blur 1": shifted + 0.1, "Blur 2": shifted - 0.1}
        validated += scores_of(method, columns, ["011", "021", "033"], draws)
        corrupted = {"ACDC": 0.99, "RandBias": tests + 0.01, "RandSpike": tests + 0.02}
        tested += scores_of(method, corrupted, ["007", "008"], draws)
        tested += scores_of(method, {"SCD": tests - 0.03, "SCD/A": 0.0}, ["S1", "S2"], draws)
        for draw in draws:
            place = folder / method / f"draw-{draw}"
            place.mkdir(parents=True)
            (place / "done.json").write_text(json.dumps({"cost": 1.5}))
    write_scores(folder, tested)
    write_scores(folder, validated, VALIDATION)
    return folder


def cells(said: str) -> list[list[str]]:
    """Return the lines of all tables, without rules."""
    lines = [line for line in said.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| -")]


def test_recipes_are_listed_by_what_validation_says_with_the_correlation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ranking.main([str(write_run(tmp_path / "a", RECIPES))]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Draw 0:")
    head, *lines = cells(said)
    assert head == ["recipe", "cost in plain steps", "validation", "validation, shifted", "tests' average of shifts"]
    assert lines == [
        ["mixup", "1.50", "0.790", "0.750", "0.710"],
        ["plain", "1.50", "0.800", "0.700", "0.720"],
        ["standard", "1.50", "0.780", "0.650", "0.680"],
    ]
    # Each column orders 3 recipes; the one has 1 2 3 where the other has 2 1 3.
    assert spearmanr([0.75, 0.70, 0.65], [0.71, 0.72, 0.68]).statistic == pytest.approx(0.5)
    assert "Spearman's rank correlation of the last two columns: 0.50 (95 % interval over patients" in said


def test_the_average_of_shifts_is_that_of_the_tables(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", {"plain": RECIPES["plain"]})
    scores = [score for score in ranking.together([folder]) if score.stage == "Unet"]
    # A structure that one data set lacks must not weigh less in it.
    scores = [score for score in scores if (score.column, score.structure) != ("SCD", "RV")]
    cohorts = ranking._arrange(scores, by_data_set=True)
    row = tabulate(scores)[0]
    columns = ("RandBias", "RandSpike", "SCD")
    assert ranking._mean(cohorts) == pytest.approx(np.mean([row.cells[column].mean for column in columns]))


def test_runs_are_told_apart_by_augmentation_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"a": {}, "b": {"augment": "gin"}, "c": {"augment": "gin", "equal_time": True}}
    runs = []
    for number, (name, found) in enumerate(settings.items()):
        runs.append(write_run(tmp_path / name, {"plain": [0.9, 0.7 + 0.05 * number, 0.8 - 0.05 * number]}))
        (runs[-1] / "configuration.json").write_text(json.dumps(found))
    assert ranking.main([*map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert [line[0] for line in cells(said)[1:]] == ["plain + gin, equal time", "plain + gin", "plain"]
    assert "columns: -1.00 (95 % interval over patients -1.00 to -1.00)" in said


def test_recipes_are_ranked_on_the_same_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a", RECIPES), write_run(tmp_path / "b", {"noise": RECIPES["plain"]}, draws=(0, 1))]
    assert ranking.main([*map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("Draw")] == ["Draw 0:", "Draws 0, 1:"]
    assert "A rank correlation needs 3 recipes." in said
    assert len(cells(said)) == 1 + 4 + 1 + 1


def test_what_was_trained_before_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a", RECIPES), write_run(tmp_path / "b", {"noise": RECIPES["plain"]})]
    (runs[1] / VALIDATION).unlink()
    assert ranking.main([*map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Trained before validation was as it is, and left out: noise.")
    assert len(cells(said)) == 4
    assert ranking.main([str(runs[1])]) == 0
    assert cells(capsys.readouterr().out) == []


@pytest.mark.parametrize("file", [FILE, VALIDATION])
def test_a_damaged_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    run = write_run(tmp_path / "a", RECIPES)
    (run / file).write_text("x")
    assert ranking.main([str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(rf"^error: .*{file}: cannot be read \(it is damaged", said)


def recipes(patients: int, noise: float) -> list[list[Cohort]]:
    """Nine recipes whose Dice differs, on patients who agree on that more or less."""
    random = np.random.default_rng(0)
    means = np.linspace(0.6, 0.8, 9)[:, None, None, None]
    values = means + noise * random.standard_normal((9, patients, 3, 2))
    return [[Cohort(of_one, ["Blur 1", "Blur 2", "Blur 3"])] for of_one in values]


def test_the_interval_holds_the_correlation_and_shrinks_where_patients_agree() -> None:
    few, many = (correlate(recipes(4, 0.2), recipes(4, 0.2)[::-1]), correlate(recipes(20, 0.02), recipes(20, 0.02)))
    assert many.value == pytest.approx(1)
    for found in (few, many):
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
    assert few.high - few.low > many.high - many.low  # type: ignore[operator]


def test_the_interval_is_that_of_a_slow_loop() -> None:
    own, theirs = recipes(5, 0.3), recipes(5, 0.1)
    random = np.random.default_rng(0)
    times = [random.multinomial(5, [1 / 5] * 5, 40) for _ in range(2)]
    found = []
    for number in range(40):
        sides = []
        for side, of_side in zip((own, theirs), times, strict=True):
            drawn = np.repeat(np.arange(5), of_side[number])
            sides.append([np.mean(cohorts[0].values[drawn]) for cohorts in side])
        found.append(spearmanr(*sides).statistic)
    low, high = np.percentile(found, (2.5, 97.5))
    assert correlate(own, theirs, resamples=40)[1:] == pytest.approx((low, high))


def test_a_single_patient_makes_no_interval() -> None:
    assert correlate(recipes(1, 0), recipes(3, 0))[1:] == (None, None)
