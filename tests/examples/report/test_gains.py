"""The figure of gains shows each method's numbers, in points, at its column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from study.report.comparison import SHIFTED, compare
from study.report.gains import gains_figure, gains_of, main
from study.run.scores import Score, write_scores

CARDIAC = ("ACDC", "RandBias", "SCD")


def scores(method: str, dice: float, columns: Sequence[str] = CARDIAC) -> list[Score]:
    return [
        Score(method, draw, "Unet", column, patient, "ED", "LV", "dice", dice + 0.01 * number + 0.02 * draw)
        for draw in (0, 1)
        for column in columns
        for number, patient in enumerate(("007", "008", "009"))
    ]


def run(folder: Path, methods: Mapping[str, float], columns: Sequence[str] = CARDIAC, **settings: object) -> Path:
    folder.mkdir()
    write_scores(folder, [one for method, dice in methods.items() for one in scores(method, dice, columns)])
    (folder / "configuration.json").write_text(json.dumps(settings))
    return folder


def test_means_intervals_and_draws_are_where_they_belong() -> None:
    differences = compare(scores("plain", 0.5) + scores("cooperative", 0.53), "plain")
    (axes,) = gains_figure({"cardiac MR": differences}).axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["ACDC\n(in-domain)", "Bias", "SCD", "average\nof shifts"]
    assert any(one.column == SHIFTED for one in differences)
    assert axes.get_ylabel() == "points of Dice over plain"
    means = [float(line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert means == pytest.approx([3.0] * 4)
    draws = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "_"]
    assert all(values == pytest.approx([3.0, 3.0]) for values in draws)


def test_each_method_is_compared_with_plain_under_its_own_augmentation(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "none", {"plain": 0.5, "default": 0.51, "dsu": 0.1}, augment="none"),
        run(tmp_path / "gin", {"plain": 0.6, "default": 0.62}, augment="gin"),
        run(tmp_path / "time", {"default": 0.63}, augment="gin", equal_time=True),
        run(tmp_path / "nuclei", {"plain": 0.7, "default": 0.74}, ("fluo256", "fluo360"), augment="gin"),
    ]
    panels = gains_of(runs, ["default"])
    means = {(name, one.method): one.mean for name, found in panels.items() for one in found if one.column == SHIFTED}
    assert means == pytest.approx(
        {
            ("cardiac MR", "default"): 0.01,
            ("cardiac MR", "default on gin"): 0.02,
            ("cardiac MR", "default, equal time on gin"): 0.03,
            ("nuclei", "default on gin"): 0.04,
        }
    )
    assert [axes.get_title(loc="left") for axes in gains_figure(panels).axes] == ["cardiac MR", "nuclei"]
    (timed,) = gains_of(runs, equal_time=True).values()
    assert {one.method for one in timed} == {"default, equal time on gin"}


def test_each_number_of_images_has_its_own_plain_and_equal_time_needs_no_other_run(tmp_path: Path) -> None:
    nuclei = ("fluo256", "fluo360")
    runs = [
        run(tmp_path / "ten", {"plain": 0.5, "default": 0.51}, nuclei, train_size=10, equal_time=True),
        run(tmp_path / "thirty", {"plain": 0.6, "default": 0.64}, nuclei, train_size=30, equal_time=True),
    ]
    (found,) = gains_of(runs, equal_time=True).values()
    means = {one.method: one.mean for one in found if one.column == SHIFTED}
    assert means == pytest.approx({"default, 10 images": 0.01, "default, 30 images": 0.04})


def test_other_settings_that_runs_differ_in_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run(tmp_path / "plain", {"plain": 0.5}, model="smp:Unet:resnet18", iterations=400, seed=0)
    other = run(tmp_path / "other", {"default": 0.6}, model="smp:Unet:resnet50", iterations=400, seed=0)
    tuned = run(tmp_path / "tuned", {"dsu": 0.6}, model="smp:Unet:resnet18", iterations=40, seed=0, start="last.pt")
    assert main([str(plain), str(other), str(tuned)]) == 0
    said = capsys.readouterr().err
    assert said.count("note: ") == 1
    assert "other differ in model smp:Unet:resnet18 and smp:Unet:resnet50, which may be what a method gains" in said


def test_a_figure_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(tmp_path / "whole", {"plain": 0.5, "cooperative": 0.53})
    assert main([str(whole), "--output", str(tmp_path / "nowhere" / "gains.png")]) == 2
    assert "gains.png: cannot be written to (No such file or directory)." in capsys.readouterr().err


def test_the_command_draws_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(tmp_path / "whole", {"plain": 0.5, "cooperative": 0.53})
    assert main([str(whole), "--output", str(tmp_path / "gains.png")]) == 0
    assert (tmp_path / "gains.png").read_bytes().startswith(b"\x89PNG")
    assert "| cooperative | Unet  | average (shifted) | 6        | +0.030 " in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = str(run(tmp_path / "whole", {"plain": 0.5, "default": 0.53}))
    alone = str(run(tmp_path / "alone", {"default": 0.5}, augment="gin"))
    for arguments, error in (
        ([whole, alone], "alone: plain under --augment gin is not there. Pass the folder that has it too."),
        ([whole, "--methods", "dsu"], "nothing to compare with plain."),
        ([str(tmp_path / "none")], "none/scores.csv.xz: cannot be read"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert error in said
        assert said.count("\n") == 1
