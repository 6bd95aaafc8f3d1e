"""The command line of a study ends with the exit code that says how it went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from latentaug.training.lock import FolderInUseError
from study.data.frame import DataError
from study.report import compare_runs
from study.report.command import run_study


def test_several_runs_are_compared_with_the_flags_and_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(compare_runs, "main", lambda arguments: asked.append(arguments) or 7)

    def runs(arguments: Sequence[str], command: str) -> Iterator[Path]:
        assert command.endswith("--draws 2")
        yield from (Path(name) for name in arguments[2:])

    assert run_study(lambda *given: [Path("one")], []) == 0
    assert run_study(lambda arguments, command: [Path("one"), Path("two")], [], ["--summary"]) == 7
    assert run_study(runs, ["--draws", "2"]) == 0
    assert asked == [["one", "two", "--summary"]]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("no such folder"), 2, "error: no such folder"),
        (FolderInUseError("runs is used by another trainer"), 2, "error: runs is used by another trainer"),
        (KeyboardInterrupt(), 130, "to go on: python "),
    ],
    ids=["data", "in use", "Ctrl-C"],
)
def test_what_stops_a_run_is_said_in_a_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def runs(arguments: Sequence[str], command: str) -> Iterator[Path]:
        yield Path("one")
        raise error

    assert run_study(runs, []) == code
    assert said in capsys.readouterr().err
