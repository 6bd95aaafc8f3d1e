"""The experiment on masked depths, from end to end on volumes so small that it takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from cardiac.run import masked_depths
from tests.support.patients import write_patient

pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.slow
def test_every_set_of_depths_has_a_row_with_a_dice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, patient in enumerate(("A", "B", "C")):
        write_patient(tmp_path / patient, seed)
    flags = ["--acdc", str(tmp_path), "--image-size", "64", "--iterations", "2", "--repeats", "2"]
    assert masked_depths.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 0 <= float(lines[0].removeprefix("Dice without masks: ")) <= 1
    head, _, *rows = [line.strip("| ").split(" | ") for line in lines[2:]]
    assert head == ["masked", "signed", "magnitude", "harm"]
    assert [row[0].count("encoder") for row in rows] == [1, 2, 3, 4, 5, 1, 1, 1, 1]
    assert all(0 <= float(cell.split(" ± ")[0]) <= 1 for row in rows for cell in row[1:])


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert masked_depths.main(["--acdc", str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err
