"""The figure of gains shows each method's numbers, in points, at its column."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.report import compare_runs
from study.report.comparison import SHIFTED, compare
from study.report.gains import gains_figure
from study.run.scores import Score, write_scores


def scores(method: str, dice: float) -> list[Score]:
    return [
        Score(method, draw, "Unet", column, patient, "ED", "LV", "dice", dice + 0.01 * number + 0.02 * draw)
        for draw in (0, 1)
        for column in ("ACDC", "RandBias", "SCD")
        for number, patient in enumerate(("007", "008", "009"))
    ]


def test_means_intervals_and_draws_are_where_they_belong() -> None:
    differences = compare(scores("plain", 0.5) + scores("cooperative", 0.53), "plain")
    (axes,) = gains_figure(differences).axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["ACDC\n(in-domain)", "Bias", "SCD", "average\nof shifts"]
    assert any(one.column == SHIFTED for one in differences)
    assert axes.get_ylabel() == "points of Dice over plain"
    means = [float(line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert means == pytest.approx([3.0] * 4)
    draws = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "_"]
    assert all(values == pytest.approx([3.0, 3.0]) for values in draws)


def test_the_command_writes_it(tmp_path: Path) -> None:
    runs = []
    for name, dice in (("plain", 0.5), ("cooperative", 0.53)):
        (tmp_path / name).mkdir()
        write_scores(tmp_path / name, scores(name, dice))
        runs.append(str(tmp_path / name))
    assert compare_runs.main([*runs, "--figure", str(tmp_path / "gains.png")]) == 0
    assert (tmp_path / "gains.png").read_bytes().startswith(b"\x89PNG")
