"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from study.run.files import replacing, save_figure

CONFIGURATION = {"preset": "quick", "iterations": 60, "data": {"acdc": "phantom"}}


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    file.write_text("before")

    def fail() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert file.read_text() == "before"
    assert [*tmp_path.iterdir()] == [file]


def test_a_figure_keeps_its_configuration_in_the_file(tmp_path: Path) -> None:
    save_figure(tmp_path / "figure.png", Figure(), CONFIGURATION)
    assert b'"acdc": "phantom"' in (tmp_path / "figure.png").read_bytes()
