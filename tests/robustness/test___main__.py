"""The command, as a user runs it."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentaug.robustness.__main__ import main

MINE = """
import torch
from torch import nn

models = {"one": nn.Conv2d(1, 2, 1), "two": nn.Conv2d(1, 2, 1)}
shifts = {"dark": lambda images, severity, generator: images / severity}


def darker(images, severity, generator):
    return images / severity


def loader():
    return [(torch.rand(2, 1, 16, 16), torch.ones(2, 16, 16).long())]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[str]:
    path, before = tmp_path / "mine.py", {*sys.modules}
    path.write_text(MINE)
    yield str(path)
    for name in {*sys.modules} - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def test_it_prints_the_table_and_writes_the_report(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    given = [f"{mine}:models", f"{mine}:loader", "--num-classes", "2", "--severities", "1", "3"]
    assert main([*given, "--shifts", "intensity", f"{mine}:shifts", "--output", str(tmp_path / "out")]) == 0
    assert "| dark | 3 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "robustness.json").read_text())["cells"][0]["model"] == "one"


def test_a_shift_is_taken_by_its_own_name(mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"{mine}:models", f"{mine}:loader", "--num-classes", "2", "--severities", "2", "--output", str(tmp_path)]
    assert main([*given, "--shifts", f"{mine}:darker"]) == 0
    assert "| darker | 2 |" in capsys.readouterr().out
    assert main([*given, "--shifts", f"{mine}:loader"]) == 2
    assert "must be a shift, a callable (images, severity, generator) -> images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ("mine", "'mine' must be file.py:name"),
        ("nowhere.py:models", "there is no file nowhere.py"),
        ("MINE:other", "has no 'other'"),
        ("no_such_package_at_all:models", "No module named 'no_such_package_at_all'"),
    ],
)
def test_what_it_cannot_find_is_told_in_a_line(
    mine: str, models: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([models.replace("MINE", mine), f"{mine}:loader", "--num-classes", "2"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_measured(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    for place in (tmp_path / "taken", tmp_path / "taken" / "below"):
        assert main([f"{mine}:models", f"{mine}:nothing", "--num-classes", "2", "--output", str(place)]) == 2
        assert "taken is no folder" in capsys.readouterr().err


def test_a_model_that_does_not_take_the_images_is_told_so(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(mine).write_text(MINE.replace("torch.rand(2, 1,", "torch.rand(2, 3,"))
    out = tmp_path / "out"
    assert main([f"{mine}:models", f"{mine}:loader", "--num-classes", "2", "--output", str(out)]) == 2
    assert "error: models['one'] was called with a tensor (2, 3, 16, 16)" in capsys.readouterr().err
    assert not out.exists()


COUNTED = """
# Batches are pickled, as for worker processes, by the name of their module.
import pickle
from pathlib import Path


class Batches(list):
    pass


def more():
    with Path(__file__).with_suffix(".runs").open("a") as file:
        file.write(__name__ + "\\n")
    return pickle.loads(pickle.dumps(Batches(loader())))


runs = more()
"""


@pytest.mark.parametrize("name", ["mine", "statistics", "latentaug", "wave", "my.models"])
def test_a_file_runs_once_and_takes_no_name_from_another_module(
    mine: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "folder").mkdir()
    file = tmp_path / f"{name}.py"
    file.write_text(MINE + COUNTED)
    monkeypatch.chdir(tmp_path / "folder")
    given = [f"{file}:models", f"../{file.name}:runs", "--num-classes", "2", "--severities", "1"]
    assert main([*given, "--shifts", f"{file}:shifts", "--output", str(tmp_path / "out")]) == 0
    (run,) = file.with_suffix(".runs").read_text().split()
    assert (run == name) is (name == "mine")
    assert sys.modules["statistics"] is statistics
    assert "wave" not in sys.modules or Path(sys.modules["wave"].__file__ or "").parent != tmp_path


def test_a_file_that_failed_runs_again(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"{mine}:models", f"{mine}:nothing", "--num-classes", "2"]
    for content, said in (("raise ValueError('not yet')", "error: not yet"), (MINE, "has no 'nothing'")):
        Path(mine).write_text(content)
        assert main(given) == 2
        assert said in capsys.readouterr().err
