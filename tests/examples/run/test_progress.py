from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest

from study.run import progress as module
from study.run.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by ten seconds whenever it is looked at."""
    ticks = count(0, 10)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


def test_items_pass_and_are_done_when_the_next_is_asked_for() -> None:
    with Progress("work", 3) as progress:
        seen = [(item, progress.done) for item in progress.over("abc")]
        assert seen == [("a", 0), ("b", 1), ("c", 2)]
        assert progress.done == 3


def test_there_is_a_line_now_and_then_where_there_is_no_terminal(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("work", 12, every=30) as progress:
        list(progress.over(range(12)))
    assert capsys.readouterr().err.splitlines() == [
        "work: 3 of 12, 01:30 left",
        "work: 6 of 12, 01:00 left",
        "work: 9 of 12, 00:30 left",
        "work: 12 of 12, 00:00 left",
    ]


def test_what_went_by_unseen_counts(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("work", 8, every=20) as progress:
        progress.reach(2)
        progress.reach(4)
    assert capsys.readouterr().err == "work: 4 of 8, 00:20 left\n"


def test_short_work_shows_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("work", 1000) as progress:
        list(progress.over(range(1000)))
    assert capsys.readouterr().err == ""


def test_there_is_a_bar_on_a_terminal_that_goes_when_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("work", 5) as progress:
        progress.reach(5)
        progress._bar.refresh()
    shown = capsys.readouterr().err
    assert "work: 100%" in shown
    assert "5/5" in shown
    assert shown.rstrip(" \r").endswith("]")
    assert "\n" not in shown
