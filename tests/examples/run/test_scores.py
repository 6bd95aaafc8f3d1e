"""The file of scores, and their means."""

from __future__ import annotations

import gzip
import lzma
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from study.run.scores import Score, column_mean, has_scores, read_scores, write_scores

LINE = Score("cooperative", 0, "FTN+STN", "RandSpike", "007", "ED", "LV", "dice", 0.8304)


def test_scores_come_back_from_a_file_whose_header_is_fixed(tmp_path: Path) -> None:
    write_scores(tmp_path, [LINE])
    assert lzma.decompress((tmp_path / "scores.csv.xz").read_bytes()).decode().splitlines() == [
        "method,draw,stage,column,patient,phase,structure,metric,value",
        "cooperative,0,FTN+STN,RandSpike,007,ED,LV,dice,0.8304",
    ]
    assert read_scores(tmp_path) == [LINE]


@pytest.mark.parametrize(
    ("metric", "value", "kept"), [("dice", 1 / 3, 0.333333), ("dice", 1.0, 1.0), ("hd95", 23.456781, 23.4568)]
)
def test_scores_are_kept_to_twice_the_decimals_that_tables_show(
    tmp_path: Path, metric: str, value: float, kept: float
) -> None:
    write_scores(tmp_path, [LINE._replace(metric=metric, value=value)])
    assert [score.value for score in read_scores(tmp_path)] == [kept]


def test_the_same_scores_make_the_same_bytes_whenever_and_wherever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        monkeypatch.setattr(time, "time", lambda number=number: 1e9 + number)
        write_scores(folder, [LINE])
    first, second = ((tmp_path / name / "scores.csv.xz").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize(("name", "written"), [("scores.csv.gz", gzip.compress), ("scores.csv", bytes)])
def test_a_file_of_an_earlier_version_is_read_until_it_is_replaced(
    tmp_path: Path, name: str, written: Callable[[bytes], bytes]
) -> None:
    old = tmp_path / name
    lines = f"{','.join(Score._fields)}\ncooperative,0,FTN+STN,RandSpike,007,ED,LV,dice,0.83041234\n"
    old.write_bytes(written(lines.encode()))
    assert has_scores(tmp_path)
    assert read_scores(tmp_path) == [LINE._replace(value=0.83041234)]
    write_scores(tmp_path, [LINE])
    assert not old.exists()
    assert read_scores(tmp_path) == [LINE]


@pytest.mark.parametrize(
    "damaged",
    [b"", b"neither", lzma.compress(b"method,draw\n" * 99)[:-9], lzma.compress(b"method,draw\na,b\n")],
    ids=["empty", "something else", "cut off", "other columns"],
)
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, damaged: bytes) -> None:
    assert not has_scores(tmp_path)
    with pytest.raises(OSError, match=r"scores\.csv\.xz"):
        read_scores(tmp_path)
    (tmp_path / "scores.csv.xz").write_bytes(damaged)
    with pytest.raises(OSError, match=r"it is damaged.*scores\.csv\.xz"):
        read_scores(tmp_path)


def score(structure: str, value: float, *, patient: str = "007", phase: str = "ED") -> Score:
    return Score("standard", 0, "FTN", "ACDC", patient, phase, structure, "dice", value)


def test_the_mean_weighs_patients_alike_however_many_frames_they_have() -> None:
    scores = [score("LV", 0.2), score("LV", 0.4, phase="ES"), score("LV", 0.9, patient="008")]
    assert column_mean(scores) == {"LV": pytest.approx((0.3 + 0.9) / 2)}


def test_the_mean_keeps_structures_apart() -> None:
    assert column_mean([score("LV", 0.5), score("RV", 0.1)]) == {"LV": 0.5, "RV": 0.1}
