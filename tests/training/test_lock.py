"""One trainer at a time in a folder: others are refused by name, and what the dead left is taken over."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from latentaug.training import lock
from latentaug.training.lock import NAME, STALE, FolderInUseError, folder_lock
from latentaug.training.process import Process
from tests.support.tiny_training import At, squares, tiny_trainer

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys, time
from pathlib import Path
from latentaug.training.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def write_lock(folder: Path, holder: Process, age: float = 0.0) -> None:
    (folder / NAME).write_text(json.dumps({**holder._asdict(), "token": "theirs"}))
    then = time.time() - age
    os.utime(folder / NAME, (then, then))


def dead() -> Process:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return Process.this()._replace(pid=child.pid, started="1")


def test_a_second_trainer_is_refused_by_the_name_of_the_first_while_that_fits(tmp_path: Path) -> None:
    this, refusals = Process.this(), []

    def fit_another(trainer: Any) -> None:
        message = (
            rf"{tmp_path} is used by another trainer, in process {this.pid} on {re.escape(this.host)}, which lives"
        )
        with pytest.raises(FolderInUseError, match=message):
            tiny_trainer(folder=tmp_path).fit(squares(), epochs=1)
        refusals.append(1)

    trainer = tiny_trainer(folder=tmp_path, callbacks=[At(2, fit_another)])
    trainer.fit(squares(), epochs=1)
    assert refusals == [1]
    assert os.listdir(tmp_path) == ["last.pt"]
    tiny_trainer(folder=tmp_path).fit(squares(), epochs=1)  # the first is through


def test_another_process_is_refused_while_the_first_lives_and_takes_over_when_it_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with (
            pytest.raises(FolderInUseError, match=rf"in process {child.pid} on .*, which lives"),
            folder_lock(tmp_path),
        ):
            pass
        child.send_signal(signal.SIGKILL)
    assert (tmp_path / NAME).exists()
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_a_lock_of_another_machine_is_taken_over_only_without_a_sign_of_life(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    far = Process("another-machine", 7)
    write_lock(tmp_path, far, age=STALE - 60)
    message = r"in process 7 on another-machine, which gave a sign of life 2\d\d s ago\. .*delete .*training\.lock"
    with pytest.raises(FolderInUseError, match=message), folder_lock(tmp_path):
        pass
    write_lock(tmp_path, far, age=STALE + 1)
    with folder_lock(tmp_path):
        pass
    assert "took over the lock of process 7 on another-machine" in caplog.text


def test_a_lock_of_a_container_with_ids_of_its_own_is_not_judged_by_them(tmp_path: Path) -> None:
    write_lock(tmp_path, dead()._replace(namespace="pid:[1]"))
    with pytest.raises(FolderInUseError, match="sign of life"), folder_lock(tmp_path):
        pass


def see_that_it_counts_until_it_is_old(folder: Path, content: bytes) -> None:
    (folder / NAME).write_bytes(content)
    with pytest.raises(FolderInUseError, match="a process that is not known"), folder_lock(folder):
        pass
    os.utime(folder / NAME, (0, 0))
    with folder_lock(folder):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}', b"\xff"])
def test_a_damaged_lock_counts_until_it_is_old(tmp_path: Path, content: bytes) -> None:
    see_that_it_counts_until_it_is_old(tmp_path, content)


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_lock(tmp_path) as held:
        os.utime(tmp_path / NAME, (0, 0))
        held.beat()
        assert (tmp_path / NAME).stat().st_mtime == 0  # it has just given one
        monkeypatch.setattr(lock, "_BEAT", -1.0)
        held.beat()
        assert (tmp_path / NAME).stat().st_mtime > 0
        (tmp_path / NAME).unlink()
        held.beat()  # and doesn't mind that there is none any more


def test_the_lock_of_who_took_over_is_left_to_it(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        write_lock(tmp_path, Process("another-machine", 7))
    assert json.loads((tmp_path / NAME).read_text())["token"] == "theirs"


def test_the_lock_goes_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), folder_lock(tmp_path):
        raise KeyError("mine")
    assert os.listdir(tmp_path) == []


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"training\.lock can't be written in .*file"), folder_lock(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    "wrong", [{"pid": "12"}, {"pid": 0}, {"pid": -1}, {"pid": True}, {"host": 3}, {"started": None}]
)
def test_a_lock_that_is_damaged_holds_a_folder_only_as_long_as_it_may_live(tmp_path: Path, wrong: Any) -> None:
    see_that_it_counts_until_it_is_old(tmp_path, json.dumps({**Process.this()._asdict(), **wrong}).encode())


def test_what_is_no_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(OSError, match=f"{NAME} can't be written in"), folder_lock(tmp_path):
        pass
