"""Files are whole or absent, whoever writes them: another process, one that is killed, one without room."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentaug.training.files import atomic_write
from latentaug.training.process import Process


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError, match="bytes-like"), atomic_write(path) as file:
        file.writelines([b"ne", "w"])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_kill_in_the_middle_of_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import time; from pathlib import Path; from latentaug.training.files import atomic_write\n"
        f"with atomic_write(Path({str(path)!r})) as file:\n"
        "    file.write(b'ne'); file.flush(); print('half', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert path.read_text() == "old"
    with atomic_write(path) as file:  # what the killed one left behind is no obstacle
        file.write(b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def unfinished(path: Path, pid: int, host: str) -> Path:
    left = path.with_name(f"{path.name}.0a1b2c3d-{pid}-{host}.tmp")
    left.write_text("ne")
    return left


def test_what_living_writers_and_other_machines_have_not_finished_is_left_alone(tmp_path: Path) -> None:
    path, this = tmp_path / "file", Process.this()
    living, far = unfinished(path, this.pid, this.host), unfinished(path, 2, "another-machine")
    old = unfinished(path, 3, "another-machine")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    with atomic_write(path) as file:
        file.write(b"new")
    assert sorted(tmp_path.iterdir()) == sorted([path, living, far])


def test_two_writers_of_one_file_never_get_in_each_others_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as first:
        first.write(b"first")
        with atomic_write(path) as second:
            second.write(b"second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_cannot_be_written_is_named_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path):
            raise OSError(28, "No space left on device")

    with pytest.raises(
        OSError, match=rf"file can't be written in {tmp_path}: No space left on device\. What it"
    ) as told:
        write()
    assert told.value.errno == 28
    assert told.value.filename == str(path)
    assert path.read_text() == "old"
    path.unlink()
    with pytest.raises(OSError, match=r"No space left on device\. Make room"):
        write()


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("no folder")
    with (
        pytest.raises(OSError, match=r"last\.pt can't be written in .*folder"),
        atomic_write(tmp_path / "folder/last.pt"),
    ):
        pass
