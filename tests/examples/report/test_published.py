from __future__ import annotations

from pathlib import Path

import pytest

from study.data.frame import DataError
from study.report.published import read_published
from study.report.tables import Cell
from tests.support.damage import NO_FILES, in_place_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "published.csv"


def test_lines_become_rows_without_draws(file: Path) -> None:
    file.write_text("method,stage,column,value\nA,FTN,ACDC,0.5\nA,FTN+STN,ACDC,0.6\nA,FTN, M&Ms ,0.25\n")
    first, second = read_published(str(file))
    assert (first.method, first.stage, first.draws) == ("A", "FTN", ())
    assert first.cells == {"ACDC": Cell(0.5, None), "M&Ms": Cell(0.25, None)}
    assert second.cells == {"ACDC": Cell(0.6, None)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column method, stage, column, value; begin with the line method,stage,column,value"),
        ("method,stage,value\n", "no column column"),
        ("method,stage,column,value\nA,FTN,ACDC,71.5\n", "line 2: A, FTN, ACDC has the value '71.5'"),
        ("method,stage,column,value\nA,FTN,ACDC,high\n", "line 2: .*a Dice score of 0 to 1"),
        ("method,stage,column,value\nA,FTN,ACDC,nan\n", "line 2: .*a Dice score of 0 to 1"),
        ("method,stage,column,value\nA,FTN\n", "line 2: .*name method, stage and column"),
        ("method,stage,column,value\nA,FTN,ACDC,0.5\nA,FTN,ACDC,0.6\n", "line 3: .* comes twice"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(file: Path, text: str, reason: str) -> None:
    file.write_text(text)
    with pytest.raises(DataError, match=rf"published\.csv.*{reason}") as caught:
        read_published(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_is_no_text_is_refused(file: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_published(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_published(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_that_a_spreadsheet_saved_anew_is_the_same(file: Path, encoding: str, end: str) -> None:
    file.write_bytes(f"method,stage,column,value{end}Müller,FTN,ACDC,0.5{end}".encode(encoding))
    (row,) = read_published(file)
    assert (row.method, row.cells) == ("Müller", {"ACDC": Cell(0.5, None)})


@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_no_file_is_refused_and_not_waited_for(file: Path, what: str) -> None:
    file.write_text("")
    in_place_of(file, what)
    with pytest.raises(DataError, match=r"published\.csv: cannot be read"):
        read_published(file)
