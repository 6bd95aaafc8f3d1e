"""Published numbers, from a file of the user's: rows of the table that no run made."""

from __future__ import annotations

import csv
import io
import math
import os
from collections import defaultdict
from pathlib import Path

from study.data.frame import DataError
from study.data.plain_files import read_text
from study.report.tables import Cell, Row

FIELDS = ("method", "stage", "column", "value")


def read_published(file: str | os.PathLike[str]) -> list[Row]:
    """Read mean Dice scores to show below those of a run; fit for argparse's `type`.

    Args:
        file: CSV with the columns method, stage, column (of the table, "average" included) and value, 0 to 1.

    Raises:
        DataError: the file cannot be read, lacks a column, has an empty field, a value that is no Dice score, or two
            values for one cell.
    """
    rows: dict[tuple[str, str], dict[str, Cell]] = defaultdict(dict)
    for number, line in enumerate(_lines(Path(file)), start=2):
        method, stage, column, value = (line[name].strip() for name in FIELDS)
        if not (method and stage and column and 0 <= _number(value) <= 1):
            raise DataError(
                f"{file}, line {number}: {method}, {stage}, {column} has the value {value!r}; "
                "name method, stage and column, and give a Dice score of 0 to 1."
            )
        if column in rows[method, stage]:
            raise DataError(f"{file}, line {number}: {method}, {stage}, {column} comes twice; remove one of the two.")
        rows[method, stage][column] = Cell(float(value), None)
    return [Row(method, stage, (), cells, {}) for (method, stage), cells in rows.items()]


def _lines(path: Path) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="")
        if absent := [name for name in FIELDS if name not in (reader.fieldnames or ())]:
            raise DataError(f"{path}: no column {', '.join(absent)}; begin with the line {','.join(FIELDS)}.")
        return list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Write CSV: {','.join(FIELDS)}.") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
