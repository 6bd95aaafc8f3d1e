"""Tables of scores, from scores that are made up here."""

from __future__ import annotations

import math
from typing import Any

import pytest

from study.report.tables import Cell, columns_of, grid, markdown, same_draws, structure_grid, summarise, tabulate
from study.run.scores import AVERAGE, Score


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
        score(value + 0.1 * (column == "M&Ms") + 0.2 * draw, method=method, stage=stage, column=column, draw=draw)
        for method, value in (("standard", 0.2), ("cooperative", 0.4))
        for draw in range(2)
        for stage in ("FTN", "FTN+STN")
        for column in ("ACDC", "M&Ms", "M&Ms/A")
    ]


def test_a_cell_is_the_mean_over_structures_then_mean_and_spread_over_draws() -> None:
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


def test_the_average_is_over_columns_without_their_parts(scores: list[Score]) -> None:
    row = tabulate(scores)[0]
    # 0.2 and 0.3 in draw 0, 0.4 and 0.5 in draw 1; the vendor's column would lower it.
    assert row.cells[AVERAGE].mean == pytest.approx(0.35)
    assert row.cells[AVERAGE].spread == pytest.approx(0.2 / 2**0.5)


def test_every_metric_has_a_table_of_its_own() -> None:
    lines = [score(0.5), score(12.0, metric="hd95"), score(8.0, metric="hd95", patient="008")]
    assert tabulate(lines)[0].cells["ACDC"].mean == 0.5
    assert tabulate(lines, "hd95")[0].cells["ACDC"].mean == 10
    assert tabulate(lines, "assd") == []


def test_a_distance_is_averaged_over_the_volumes_that_have_one() -> None:
    lines = [score(1.0, metric="missed"), score(0.0, metric="missed", patient="008")]
    lines += [score(8.0, metric="hd95", patient="008")]
    assert tabulate(lines, "hd95")[0].cells["ACDC"] == Cell(8, None)
    assert tabulate(lines, "missed")[0].cells["ACDC"] == Cell(0.5, None)


@pytest.mark.parametrize("where", [{"structure": "RV"}, {"draw": 1}])
def test_a_cell_without_any_distance_of_a_structure_or_draw_stays_empty(where: dict[str, Any]) -> None:
    lines = [score(8.0, metric="hd95"), score(0.0, metric="missed"), score(1.0, metric="missed", **where)]
    lines += [score(2.0, metric="hd95", column="SCD", draw=draw) for draw in {0, where.get("draw", 0)}]
    (row,) = tabulate(lines, "hd95")
    assert set(row.cells) == {"SCD"}
    assert row.cells["SCD"].mean == 2


def test_structures_have_rows_of_their_own_with_an_average() -> None:
    lines = [score(0.8), score(0.4, structure="RV"), score(0.6, column="SCD")]
    rows = tabulate(lines)
    assert structure_grid(rows, columns_of(rows)) == [
        ["method", "stage", "draws", "structure", "ACDC", "SCD", "average"],
        ["standard", "FTN", "1", "LV", "0.800", "0.600", "0.700"],
        ["standard", "FTN", "1", "RV", "0.400", "", "0.400"],
    ]


def test_rows_are_methods_and_stages_and_columns_end_with_the_average(scores: list[Score]) -> None:
    rows = tabulate(scores)
    assert [(row.method, row.stage) for row in rows] == [
        (method, stage) for method in ("standard", "cooperative") for stage in ("FTN", "FTN+STN")
    ]
    assert columns_of(rows) == ["ACDC", "M&Ms", "average"]
    assert columns_of(rows, parts=True) == ["M&Ms/A"]


def test_markdown_lines_up() -> None:
    lines = markdown(grid(tabulate([score(0.5), score(0.75, stage="FTN+STN")]), ["ACDC", "M&Ms"])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split() == ["|", "standard", "|", "FTN+STN", "|", "1", "|", "0.750", "|", "|"]


def test_tables_with_something_to_compare_come_first(scores: list[Score]) -> None:
    more = [s._replace(draw=2) for s in scores if s.method == "standard" and s.draw == 0]
    assert [*same_draws([*scores, *more])] == ["draws 0, 1", "draws 0, 1, 2"]
    assert same_draws([]) == {}


def test_the_spread_over_draws_is_the_sample_deviation_and_absent_for_one_draw() -> None:
    assert summarise([0.5]) == (0.5, None)
    mean, spread = summarise([0.2, 0.4, 0.9])
    assert mean == pytest.approx(0.5)
    assert spread == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
