"""What the tables of a run are written to."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from study.report.tables import Cell, Row
from study.report.written import curves_figure, write_report
from study.run.scores import Score, read_scores

CONFIGURATION = {"preset": "quick", "iterations": 60, "data": {"acdc": "phantom"}}


def score(
    value: float,
    *,
    method: str = "standard",
    draw: int = 0,
    stage: str = "FTN",
    column: str = "ACDC",
    patient: str = "007",
    phase: str = "ED",
    structure: str = "LV",
    metric: str = "dice",
) -> Score:
    return Score(method, draw, stage, column, patient, phase, structure, metric, value)


@pytest.fixture
def scores() -> list[Score]:
    return [
        score(
            round(value + 0.1 * (column == "M&Ms") + 0.2 * draw, 4),
            method=method,
            stage=stage,
            column=column,
            draw=draw,
        )
        for method, value in (("standard", 0.2), ("cooperative", 0.4))
        for draw in range(2)
        for stage in ("FTN", "FTN+STN")
        for column in ("ACDC", "M&Ms", "M&Ms/A")
    ]


def test_a_report_carries_the_configuration_in_every_file(tmp_path: Path, scores: list[Score]) -> None:
    shown = write_report(tmp_path, scores, CONFIGURATION, ["Too short to rank methods."])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "comparison.csv",
        "configuration.json",
        "scores.csv.xz",
        "table.json",
        "table.md",
        "table.png",
    ]
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["configuration"] == json.loads((tmp_path / "configuration.json").read_text()) == CONFIGURATION
    assert table["columns"] == ["ACDC", "M&Ms", "average", "M&Ms/A"]
    assert table["rows"][0]["cells"]["ACDC"]["mean"] == pytest.approx(0.3)
    page = (tmp_path / "table.md").read_text()
    assert shown.splitlines()[0] in page
    assert '"iterations": 60' in page
    assert "- Too short to rank methods." in page
    assert b'"iterations": 60' in (tmp_path / "table.png").read_bytes()


def test_methods_with_fewer_draws_have_a_table_of_those_that_all_have(tmp_path: Path, scores: list[Score]) -> None:
    few = [score(0.9, method="ramp", column=column) for column in ("ACDC", "M&Ms", "M&Ms/A")]
    shown = write_report(tmp_path, [*scores, *few], CONFIGURATION, [])
    whole, first = (part.splitlines() for part in shown.split("Draw 0:"))
    assert whole[0] == "Draws 0, 1:"
    assert not any("ramp" in line for line in whole)
    assert {line.split("|")[1].strip() for line in first if "FTN" in line} == {"standard", "cooperative", "ramp"}
    assert "0.400 |" in next(line for line in first if line.startswith("| cooperative"))  # draw 1 has 0.6
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["method"], row["draws"]) for row in rows if row["stage"] == "FTN"] == [
        ("standard", [0, 1]),
        ("cooperative", [0, 1]),
        ("standard", [0]),
        ("cooperative", [0]),
        ("ramp", [0]),
    ]


def test_the_page_goes_from_dice_to_distances_to_differences(tmp_path: Path, scores: list[Score]) -> None:
    other = [s._replace(metric=metric, value=9.5) for s in scores for metric in ("hd95", "assd")]
    other += [s._replace(metric="missed", value=0.5 * (s.column == "M&Ms")) for s in scores]
    write_report(tmp_path, [*scores, *other], CONFIGURATION, [])
    page = (tmp_path / "table.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings == [
        "# Dice",
        "## 3-D Dice per structure",
        "## HD95 in mm",
        "## ASSD in mm",
        "## Missed structures",
        "## Differences to standard, patient by patient",
        "### 3-D Dice",
        "### HD95 in mm",
        "### ASSD in mm",
        "### Missed structures",
        "## As published",
        "## Settings",
    ]
    assert "| 9.50 ± 0.00 |" in page
    assert "Patients are the unit" in page


def test_comparisons_are_in_json_and_csv_alike(tmp_path: Path, scores: list[Score]) -> None:
    write_report(tmp_path, scores, CONFIGURATION, [])
    found = json.loads((tmp_path / "table.json").read_text())["comparison"]
    with (tmp_path / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["column"] for line in lines] == [each["column"] for each in found]
    assert (lines[0]["method"], lines[0]["reference"], lines[0]["patients"]) == ("cooperative", "standard", "1")
    assert float(lines[0]["mean"]) == found[0]["mean"] == pytest.approx(0.2)
    assert lines[0]["low"] == ""
    assert found[0]["low"] is None
    assert [part.split(":")[0] for part in lines[0]["draws"].split()] == list(found[0]["draws"]) == ["0", "1"]


def test_one_method_alone_is_not_compared(tmp_path: Path) -> None:
    write_report(tmp_path, [score(0.5)], CONFIGURATION, [])
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 1
    assert "Differences" not in (tmp_path / "table.md").read_text()


def test_published_rows_are_shown_below_and_not_mixed_with_the_runs_own(tmp_path: Path, scores: list[Score]) -> None:
    published = [Row("paper", "FTN", (), {"ACDC": Cell(0.123, None)}, {})]
    shown = write_report(tmp_path, scores, CONFIGURATION, [], published=published)
    row = next(line for line in shown.splitlines() if "paper" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["paper", "FTN", "published", "0.123", "", ""]
    table = json.loads((tmp_path / "table.json").read_text())
    assert "paper" not in {each["method"] for each in table["rows"]}
    assert table["published"][0]["cells"]["ACDC"]["mean"] == 0.123


def test_a_report_is_the_same_when_it_is_written_again(tmp_path: Path, scores: list[Score]) -> None:
    write_report(tmp_path, scores, CONFIGURATION, [])
    files = [tmp_path / name for name in ("scores.csv.xz", "table.json", "table.md", "comparison.csv")]
    first = [file.read_bytes() for file in files]
    write_report(tmp_path, read_scores(tmp_path), CONFIGURATION, [])
    assert [file.read_bytes() for file in files] == first


def test_curves_have_a_panel_for_each_number_and_a_line_for_each_run() -> None:
    curves = {
        "standard": [{"iteration": 1, "loss": 2.0}, {"iteration": 2, "loss": 1.0}],
        "cooperative": [
            {"iteration": 1, "loss": 3.0, "hard loss": 1.0},
            {"iteration": 2, "loss": 2.0, "hard loss": 0.5},
        ],
    }
    panels = {axes.get_title(): axes for axes in curves_figure(curves).axes}
    assert {title: len(axes.lines) for title, axes in panels.items()} == {"loss": 2, "hard loss": 1}
    assert panels["loss"].lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert panels["loss"].lines[1].get_color() == panels["hard loss"].lines[0].get_color()


def test_twenty_curves_are_told_apart() -> None:
    curves = {f"run {number}": [{"iteration": 1, "loss": 0.0}, {"iteration": 2, "loss": 1.0}] for number in range(20)}
    (axes,) = curves_figure(curves).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20
