"""Who trains, validates and is tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cardiac.data.split import (
    DRAWS,
    MOST_LEFT_OVER,
    POOL,
    TEST,
    VALIDATION,
    Split,
    choose_split,
    left_over,
    paper_split,
    read_split,
)
from study.data.frame import DataError
from tests.support.damage import NO_FILES, in_place_of

SPLITS = [(draw, setting) for setting in (10, 70) for draw in range(3)]


@pytest.mark.parametrize(("draw", "setting"), SPLITS)
def test_no_patient_is_in_two_sets_of_a_paper_split(draw: int, setting: int) -> None:
    split = paper_split(draw, setting)
    assert len({*split.patients}) == len(split.patients)


@pytest.mark.parametrize("draw", range(3))
def test_ten_patients_of_the_pool_train_and_twenty_others_are_tested(draw: int) -> None:
    split = paper_split(draw)
    assert len({*split.train}) == 10
    assert {*split.train} <= {*POOL}
    assert len({*split.test}) == 20
    assert not {*split.test} & {*POOL}


@pytest.mark.parametrize(
    ("draw", "train", "validation"),
    [
        (0, "073 061 012 053 046 044 022 092 004 001", "011 071 062 095 082"),
        (1, "002 041 001 033 006 024 022 021 025 086", "011 071 095"),
        (2, "093 046 084 073 013 024 043 052 021 033", "011 071 002 062 095"),
    ],
)
def test_the_lists_of_the_small_setting_are_those_released(draw: int, train: str, validation: str) -> None:
    split = paper_split(draw)
    assert split.train == tuple(train.split())
    assert split.validation == tuple(validation.split())


def test_every_split_tests_the_same_twenty_patients() -> None:
    tested = "007 008 009 010 027 028 029 030 047 048 049 050 067 068 069 070 087 088 089 090"
    assert {paper_split(*which).test for which in SPLITS} == {tuple(tested.split())}


def test_the_large_setting_is_one_split_whatever_the_draw() -> None:
    assert len({paper_split(draw, 70) for draw in range(3)}) == 1
    assert " ".join(paper_split(0, 70).validation) == "005 020 023 037 042 046 066 078 082 097"


@pytest.mark.parametrize(("name", "each"), [("train", 14), ("validation", 2), ("test", 4)])
def test_the_large_setting_takes_as_many_of_each_disease(name: str, each: int) -> None:
    # ACDC's patients come in blocks of twenty: DCM, HCM, MINF, NOR, RV.
    blocks = [(int(patient) - 1) // 20 for patient in getattr(paper_split(0, 70), name)]
    assert [blocks.count(block) for block in range(5)] == [each] * 5


def test_the_pool_has_forty_patients() -> None:
    assert len({*POOL}) == 40


def test_the_large_setting_covers_a_hundred_patients() -> None:
    split = paper_split(1, 70)
    assert (len(split.train), len(split.validation), len(split.test)) == (70, 10, 20)
    assert {*split.patients} == {f"{number:03}" for number in range(1, 101)}


def test_the_leak_of_draw_1_is_kept_out_of_validation_and_said() -> None:
    assert {"002", "022"} <= {*DRAWS[1]} & {*VALIDATION[1]}
    split = paper_split(1)
    assert split.train == DRAWS[1]
    assert split.validation == ("011", "071", "095")
    assert "002 and 022" in split.note
    assert paper_split(0).note == paper_split(2).note == ""


@pytest.mark.parametrize(("draw", "setting", "name"), [(3, 10, "draw"), (-1, 10, "draw"), (0, 40, "setting")])
def test_unknown_draws_and_settings_are_refused(draw: int, setting: int, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be"):
        paper_split(draw, setting)


def test_a_patient_in_two_sets_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="patient 002 is in train and in test"):
        Split(("001", "002"), ("003",), ("002",))


def test_an_empty_set_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="no validation patient"):
        Split(("001",), (), ("002",))


def test_the_paper_split_is_taken_where_its_patients_are() -> None:
    everybody = [f"{number:03}" for number in range(1, 151)]
    assert choose_split(everybody, 2) == paper_split(2)


def test_missing_patients_of_the_paper_are_left_out_and_counted() -> None:
    there = [p for p in paper_split(0).patients if p not in ("007", "073")]
    split = choose_split(there, 0)
    assert {*split.patients} == {*there}
    assert split.note == "2 of the paper's 35 patients are not there."


def test_other_patients_are_dealt_out_whole_and_reproducibly() -> None:
    others = [f"X{number}" for number in range(11)]
    split = choose_split(others, 0)
    assert sorted(split.patients) == sorted(others)
    assert (len(split.train), len(split.validation), len(split.test)) == (7, 2, 2)
    assert split == choose_split(others[::-1], 0)
    assert split.train != choose_split(others, 1).train
    assert "dealt out" in split.note


def test_three_patients_are_the_least() -> None:
    assert len(choose_split(["A", "B", "C"], 0).train) == 1
    with pytest.raises(DataError, match="Give at least 3"):
        choose_split(["A", "B"], 0)


def test_a_split_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["003"], "validation": ["021"], "test": ["022"]}))
    split = read_split(file, ["003", "021", "022"])
    assert (split.train, split.validation, split.test) == (("003",), ("021",), ("022",))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a split"),
        ("[]", "not a split"),
        ('{"train": ["003"]}', "KeyError: 'validation'"),
        ('{"train": ["003"], "validation": ["021"], "test": ["003"]}', "003 is in train and in test"),
        ('{"train": ["003"], "validation": ["021"], "test": ["150"]}', "150 is not in the data"),
    ],
)
def test_a_bad_split_file_is_refused_by_name(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "split.json"
    file.write_text(text)
    with pytest.raises(DataError, match=f"split.json: .*{reason}"):
        read_split(file, ["003", "021", "022"])


def test_a_missing_split_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: not a split"):
        read_split(tmp_path / "absent.json", ["003"])


def test_nobody_tested_validates() -> None:
    assert not {*TEST} & {patient for patients in VALIDATION for patient in patients}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_a_split_that_an_editor_saved_anew_is_the_same(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "split.json"
    text = '{"train": ["Jörg"],\r\n "validation": ["021"],\r\n "test": ["022"]}'
    file.write_bytes(text.encode(encoding))
    assert read_split(file, ["Jörg", "021", "022"]).train == ("Jörg",)


@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_no_file_is_no_split(tmp_path: Path, what: str) -> None:
    file = tmp_path / "split.json"
    file.write_text("{}")
    in_place_of(file, what)
    with pytest.raises(DataError, match=r"split\.json: not a split"):
        read_split(file, ["003"])


def test_a_split_nested_without_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text('{"train": ' + "[" * 200_000)
    with pytest.raises(DataError, match=r"split\.json: not a split \(RecursionError"):
        read_split(file, ["003"])


@pytest.mark.parametrize("draw", range(3))
def test_methods_are_chosen_by_all_whom_a_draw_neither_trains_nor_tests(draw: int) -> None:
    split = paper_split(draw)
    there = [patient for patient in (*POOL, *TEST) if patient not in ("005", "025")]
    chosen_by = left_over(split, there)
    assert {*chosen_by} >= {*split.validation}
    assert not {*chosen_by} & {*split.train, *split.test}
    few = [*split.patients, "042", "064"]
    assert {*left_over(split, few)} == {*split.validation, "042", "064"} - {*split.train}


def test_of_many_who_are_left_over_twenty_are_taken_the_same_each_time() -> None:
    split, everybody = paper_split(0), [f"{number:03}" for number in range(1, 151)]
    chosen_by = left_over(split, everybody)
    assert len({*chosen_by}) == MOST_LEFT_OVER == len(split.test)
    assert chosen_by[:5] == split.validation
    assert chosen_by == left_over(split, everybody[::-1])
    assert max(chosen_by) > "100"
