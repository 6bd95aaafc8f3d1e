"""The scripts that a user copies run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.examples.test_architecture import DOORS, SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.stem not in DOORS], ids=lambda path: path.name)
def test_a_script_runs_and_says_something(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
