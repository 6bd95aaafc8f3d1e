"""Runs of different settings, side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from study.report import compare_runs
from study.run.scores import Score, read_scores, write_scores
from tests.support.damage import in_place_of


def write(folder: Path, method: str, dice: float, draws: Sequence[int] = (0,)) -> str:
    folder.mkdir()
    scores = [
        Score(method, draw, "FTN", column, patient, "ED", "LV", "dice", dice)
        for draw in draws
        for column in ("ACDC", "RandBias")
        for patient in ("007", "008")
    ]
    write_scores(folder, scores)
    return str(folder)


def test_methods_of_several_runs_are_in_one_table_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write(tmp_path / "a", "standard", 0.5, draws=(0, 1)), write(tmp_path / "b", "cooperative", 0.75)]
    assert compare_runs.main(runs) == 0
    tables, _, differences = capsys.readouterr().out.partition("\nLess that of standard on the same draws:\n")
    assert [line for line in tables.splitlines() if line.startswith("Dice")] == ["Dice, draw 0:", "Dice, draws 0, 1:"]
    both = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.splitlines()[4:6]]
    assert [(row[0], row[-1]) for row in both] == [("standard", "0.500"), ("cooperative", "0.750")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in differences.splitlines()[3:]]
    assert {(row[0], row[4]) for row in lines} == {("cooperative", "+0.250")}


def test_the_network_alone_is_the_reference_where_a_run_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write(tmp_path / "a", "standard", 0.5), write(tmp_path / "b", "plain", 0.75)]
    assert compare_runs.main(runs) == 0
    said = capsys.readouterr().out
    assert "Less that of plain on the same draws:" in said
    assert "-0.250" in said


def test_runs_of_different_kinds_of_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / "hearts", "plain", 0.5), str(tmp_path / "nuclei")]
    (tmp_path / "nuclei").mkdir()
    nuclei = [Score("plain", 0, "Unet", column, "1", "", "nuclei", "dice", 0.5) for column in ("fluo256", "fluo360")]
    write_scores(tmp_path / "nuclei", nuclei)
    assert compare_runs.main(runs) == 2
    assert "nuclei is of nuclei. Compare each kind of images by itself." in capsys.readouterr().err


def test_runs_without_a_reference_are_shown_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / "a", "cooperative", 0.5), write(tmp_path / "b", "mixup", 0.75)]
    assert compare_runs.main([*runs, "--output", str(tmp_path / "again")]) == 0
    assert "No differences: there is neither plain nor standard among cooperative, mixup." in capsys.readouterr().out
    assert (tmp_path / "again" / "table.md").exists()
    assert compare_runs.main([*runs, "--reference", "mixup"]) == 0
    assert "-0.250" in capsys.readouterr().out


def test_methods_are_called_by_their_augmentation_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / name, "plain", dice) for name, dice in (("a", 0.5), ("b", 0.75), ("c", 0.25))]
    for run, configuration in zip(runs, ({"augment": "none"}, {"augment": "gin"}, {"augment": "strong"}), strict=True):
        (Path(run) / "configuration.json").write_text(json.dumps(configuration))
    assert compare_runs.main(runs) == 0
    said = capsys.readouterr().out
    assert re.findall(r"^\| (plain[^|]*?) +\| FTN +\| 1 ", said, re.MULTILINE) == [
        "plain",
        "plain + gin",
        "plain + strong",
    ]
    assert re.search(r"^\| plain \+ gin +.* \+0\.250 ", said, re.MULTILINE)
    assert compare_runs.main(runs[1:2]) == 0  # alone it needs no such name
    assert "gin" not in capsys.readouterr().out
    assert compare_runs.main([*runs, "--reference", "plain + gin"]) == 0
    assert re.search(r"^\| plain \+ strong +.* -0\.500 ", capsys.readouterr().out, re.MULTILINE)


def test_another_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / "a", "standard", 0.5), write(tmp_path / "b", "cooperative", 0.75)]
    assert compare_runs.main([*runs, "--reference", "cooperative"]) == 0
    assert "-0.250" in capsys.readouterr().out


def test_what_a_run_makes_of_its_scores_is_made_again_from_a_folder_of_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, again = tmp_path / "results", tmp_path / "again"
    write(results, "standard", 0.5)
    (results / "configuration.json").write_text('{"preset": "cpu"}')
    about = {"iterations": 4, "seconds": 1.5, "notes": ["Ten patients train."]}
    (results / "standard" / "draw-0").mkdir(parents=True)
    (results / "standard" / "draw-0" / "done.json").write_text(json.dumps(about))
    assert compare_runs.main([str(results), write(tmp_path / "b", "cooperative", 0.75), "--output", str(again)]) == 0
    assert {"comparison.csv", "table.json", "table.md", "table.png"} <= {path.name for path in again.iterdir()}
    page = (again / "table.md").read_text()
    assert page.splitlines()[2] in capsys.readouterr().out
    assert "- standard, draw 0: 4 iterations in 1.5 s." in page
    assert json.loads((again / "table.json").read_text())["configuration"] == {str(results): {"preset": "cpu"}}
    assert len(read_scores(again)) == 8
    assert compare_runs.main([str(results), "--output", str(tmp_path / "one")]) == 0
    assert json.loads((tmp_path / "one" / "table.json").read_text())["configuration"] == {"preset": "cpu"}


@pytest.mark.parametrize(
    ("others", "error"),
    [
        (["b", "--reference", "mixup"], "--reference mixup: no run has it; they have standard, cooperative"),
        (["c"], "c/scores.csv.xz: cannot be read"),
        (["b", "--output", "a"], "--output a: the scores are read from there"),
        (["b", "--output", "a/scores.csv.xz"], "a/scores.csv.xz: cannot be written to"),
        (["a"], "a: has standard, draw 0, as .*a has. Leave one of them out"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, others: list[str], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", "standard", 0.5)
    write(tmp_path / "b", "cooperative", 0.75)
    assert compare_runs.main(["a", *others]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert re.search(error, said)


@pytest.mark.parametrize("name", ["scores.csv.xz", "configuration.json"])
def test_a_pipe_in_a_runs_folder_is_refused_and_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write(tmp_path / "a", "standard", 0.5)
    (tmp_path / "a" / name).touch()
    in_place_of(tmp_path / "a" / name, "pipe")
    assert compare_runs.main([str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"a/{name}: " in said
    assert "it is a named pipe, not a file" in said
