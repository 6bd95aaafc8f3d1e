import csv
import json

import pytest
from cardiac.report.report import (
    AVERAGE,
    Row,
    columns_of,
    curves_figure,
    grid,
    markdown,
    read_scores,
    replacing,
    same_draws,
    save_figure,
    structure_grid,
    tabulate,
    write_report,
    write_scores,
)
from cardiac.run.metrics import Cell, Score
from matplotlib.figure import Figure

CONFIGURATION = {"preset": "quick", "iterations": 60, "data": {"acdc": "phantom"}}


def score(
    value,
    *,
    method="standard",
    draw=0,
    stage="FTN",
    column="ACDC",
    patient="007",
    phase="ED",
    structure="LV",
    metric="dice",
):
    return Score(method, draw, stage, column, patient, phase, structure, metric, value)


@pytest.fixture
def scores():
    return [
        score(value + 0.1 * (column == "M&Ms") + 0.2 * draw, method=method, stage=stage, column=column, draw=draw)
        for method, value in (("standard", 0.2), ("cooperative", 0.4))
        for draw in range(2)
        for stage in ("FTN", "FTN+STN")
        for column in ("ACDC", "M&Ms", "M&Ms/A")
    ]


def test_scores_come_back_from_a_file_whose_header_is_fixed(tmp_path):
    file = tmp_path / "scores.csv"
    line = Score("cooperative", 0, "FTN+STN", "RandSpike", "007", "ED", "LV", "dice", 0.83)
    write_scores(file, [line])
    assert file.read_text().splitlines() == [
        "method,draw,stage,column,patient,phase,structure,metric,value",
        "cooperative,0,FTN+STN,RandSpike,007,ED,LV,dice,0.83",
    ]
    assert read_scores(file) == [line]


def test_a_cell_is_the_mean_over_structures_then_mean_and_spread_over_draws():
    lines = [
        score(0.2, draw=0, structure="LV"),
        score(0.4, draw=0, structure="RV"),
        score(0.5, draw=1, structure="LV"),
        score(0.5, draw=1, structure="RV"),
    ]
    (row,) = tabulate(lines)
    assert row.draws == (0, 1)
    assert row.cells["ACDC"].mean == pytest.approx(0.4)
    assert row.cells["ACDC"].spread == pytest.approx(0.2 / 2**0.5)
    assert row.structures["ACDC"]["LV"].mean == pytest.approx(0.35)


def test_the_average_is_over_columns_without_their_parts(scores):
    row = tabulate(scores)[0]
    # 0.2 and 0.3 in draw 0, 0.4 and 0.5 in draw 1; the vendor's column would lower it.
    assert row.cells[AVERAGE].mean == pytest.approx(0.35)
    assert row.cells[AVERAGE].spread == pytest.approx(0.2 / 2**0.5)


def test_every_metric_has_a_table_of_its_own():
    lines = [score(0.5), score(12.0, metric="hd95"), score(8.0, metric="hd95", patient="008")]
    assert tabulate(lines)[0].cells["ACDC"].mean == 0.5
    assert tabulate(lines, "hd95")[0].cells["ACDC"].mean == 10
    assert tabulate(lines, "assd") == []


def test_a_distance_is_averaged_over_the_volumes_that_have_one():
    lines = [score(1.0, metric="missed"), score(0.0, metric="missed", patient="008")]
    lines += [score(8.0, metric="hd95", patient="008")]
    assert tabulate(lines, "hd95")[0].cells["ACDC"] == Cell(8, None)
    assert tabulate(lines, "missed")[0].cells["ACDC"] == Cell(0.5, None)


@pytest.mark.parametrize("where", [{"structure": "RV"}, {"draw": 1}])
def test_a_cell_without_any_distance_of_a_structure_or_draw_stays_empty(where):
    lines = [score(8.0, metric="hd95"), score(0.0, metric="missed"), score(1.0, metric="missed", **where)]
    lines += [score(2.0, metric="hd95", column="SCD", draw=draw) for draw in {0, where.get("draw", 0)}]
    (row,) = tabulate(lines, "hd95")
    assert set(row.cells) == {"SCD"}
    assert row.cells["SCD"].mean == 2


def test_structures_have_rows_of_their_own_with_an_average():
    lines = [score(0.8), score(0.4, structure="RV"), score(0.6, column="SCD")]
    rows = tabulate(lines)
    assert structure_grid(rows, columns_of(rows)) == [
        ["method", "stage", "draws", "structure", "ACDC", "SCD", "average"],
        ["standard", "FTN", "1", "LV", "0.800", "0.600", "0.700"],
        ["standard", "FTN", "1", "RV", "0.400", "", "0.400"],
    ]


def test_rows_are_methods_and_stages_and_columns_end_with_the_average(scores):
    rows = tabulate(scores)
    assert [(row.method, row.stage) for row in rows] == [
        (method, stage) for method in ("standard", "cooperative") for stage in ("FTN", "FTN+STN")
    ]
    assert columns_of(rows) == ["ACDC", "M&Ms", "average"]
    assert columns_of(rows, parts=True) == ["M&Ms/A"]


def test_markdown_lines_up():
    lines = markdown(grid(tabulate([score(0.5), score(0.75, stage="FTN+STN")]), ["ACDC", "M&Ms"])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split() == ["|", "standard", "|", "FTN+STN", "|", "1", "|", "0.750", "|", "|"]


def test_a_report_carries_the_configuration_in_every_file(tmp_path, scores):
    shown = write_report(tmp_path, scores, CONFIGURATION, ["Too short to rank methods."])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "comparison.csv",
        "configuration.json",
        "scores.csv",
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


def test_methods_with_fewer_draws_have_a_table_of_those_that_all_have(tmp_path, scores):
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


def test_tables_with_something_to_compare_come_first(scores):
    more = [s._replace(draw=2) for s in scores if s.method == "standard" and s.draw == 0]
    assert [*same_draws([*scores, *more])] == ["draws 0, 1", "draws 0, 1, 2"]
    assert same_draws([]) == {}


def test_the_page_goes_from_dice_to_distances_to_differences(tmp_path, scores):
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


def test_comparisons_are_in_json_and_csv_alike(tmp_path, scores):
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


def test_one_method_alone_is_not_compared(tmp_path):
    write_report(tmp_path, [score(0.5)], CONFIGURATION, [])
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 1
    assert "Differences" not in (tmp_path / "table.md").read_text()


def test_published_rows_are_shown_below_and_not_mixed_with_the_runs_own(tmp_path, scores):
    published = [Row("paper", "FTN", (), {"ACDC": Cell(0.123, None)}, {})]
    shown = write_report(tmp_path, scores, CONFIGURATION, [], published=published)
    row = next(line for line in shown.splitlines() if "paper" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["paper", "FTN", "published", "0.123", "", ""]
    table = json.loads((tmp_path / "table.json").read_text())
    assert "paper" not in {each["method"] for each in table["rows"]}
    assert table["published"][0]["cells"]["ACDC"]["mean"] == 0.123


def test_a_report_is_the_same_when_it_is_written_again(tmp_path, scores):
    write_report(tmp_path, scores, CONFIGURATION, [])
    files = [tmp_path / name for name in ("scores.csv", "table.json", "table.md", "comparison.csv")]
    first = [file.read_bytes() for file in files]
    write_report(tmp_path, read_scores(tmp_path / "scores.csv"), CONFIGURATION, [])
    assert [file.read_bytes() for file in files] == first


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "table.md"
    file.write_text("before")

    def fail():
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert file.read_text() == "before"
    assert [*tmp_path.iterdir()] == [file]


def test_curves_have_a_panel_for_each_number_and_a_line_for_each_run():
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


def test_a_figure_keeps_its_configuration_in_the_file(tmp_path):
    save_figure(tmp_path / "figure.png", Figure(), CONFIGURATION)
    assert b'"acdc": "phantom"' in (tmp_path / "figure.png").read_bytes()


def test_twenty_curves_are_told_apart():
    curves = {f"run {number}": [{"iteration": 1, "loss": 0.0}, {"iteration": 2, "loss": 1.0}] for number in range(20)}
    (axes,) = curves_figure(curves).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20
