"""Runs of different settings, side by side."""

import re

import pytest
from cardiac.report import compare_runs
from cardiac.run.scores import Score, write_scores


def write(folder, method, dice, draws=(0,)):
    folder.mkdir()
    scores = [
        Score(method, draw, "FTN", column, patient, "ED", "LV", "dice", dice)
        for draw in draws
        for column in ("ACDC", "RandBias")
        for patient in ("007", "008")
    ]
    write_scores(folder / "scores.csv", scores)
    return str(folder)


def test_methods_of_several_runs_are_in_one_table_and_compared(tmp_path, capsys):
    runs = [write(tmp_path / "a", "standard", 0.5, draws=(0, 1)), write(tmp_path / "b", "cooperative", 0.75)]
    assert compare_runs.main(runs) == 0
    tables, _, differences = capsys.readouterr().out.partition("\nLess that of standard on the same draws:\n")
    assert [line for line in tables.splitlines() if line.startswith("Dice")] == ["Dice, draw 0:", "Dice, draws 0, 1:"]
    both = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines()[4:6]]
    assert [(row[0], row[-1]) for row in both] == [("standard", "0.500"), ("cooperative", "0.750")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in differences.splitlines()[3:]]
    assert {(row[0], row[4]) for row in lines} == {("cooperative", "+0.250")}


def test_the_network_alone_is_the_reference_where_a_run_has_it(tmp_path, capsys):
    runs = [write(tmp_path / "a", "standard", 0.5), write(tmp_path / "b", "plain", 0.75)]
    assert compare_runs.main(runs) == 0
    said = capsys.readouterr().out
    assert "Less that of plain on the same draws:" in said
    assert "-0.250" in said


def test_another_reference(tmp_path, capsys):
    runs = [write(tmp_path / "a", "standard", 0.5), write(tmp_path / "b", "cooperative", 0.75)]
    assert compare_runs.main([*runs, "--reference", "cooperative"]) == 0
    assert "-0.250" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("others", "error"),
    [
        (["b", "--reference", "mixup"], "--reference mixup: no run has it; they have standard, cooperative"),
        (["c"], "c/scores.csv: cannot be read"),
        (["a"], "a: has standard, draw 0, as .*a has. Leave one of them out"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, monkeypatch, others, error):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", "standard", 0.5)
    write(tmp_path / "b", "cooperative", 0.75)
    assert compare_runs.main(["a", *others]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert re.search(error, said)
