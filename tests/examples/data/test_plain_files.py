from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from study.data import plain_files
from study.data.plain_files import is_there, open_file, read_bytes, read_compressed, read_text
from tests.support.damage import in_place_of

TEXT = "ED: 1\nGruppe: Größe\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def test_a_file_is_opened_and_read(file: Path) -> None:
    with open_file(file) as opened:
        assert opened.read() == b"content"
    assert read_bytes(file) == b"content"
    link = file.with_name("link")
    link.symlink_to(file)
    assert read_bytes(link) == b"content"


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("pipe", "it is a named pipe, not a file"),
        ("socket", "it is a socket, not a file"),
        ("folder", "it is a folder, not a file"),
        ("link to a device", "it is a device, not a file"),
        ("dangling link", "No such file"),
        ("link to itself", "symbolic links"),
    ],
)
def test_what_is_no_file_is_told_at_once(file: Path, what: str, reason: str) -> None:
    in_place_of(file, what)
    with pytest.raises(OSError, match=reason) as caught:
        open_file(file)
    assert caught.value.filename == str(file)


def test_a_pipe_that_takes_the_files_place_while_it_is_opened_is_not_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.stat(file)
    in_place_of(file, "pipe")
    monkeypatch.setattr(plain_files.os, "stat", lambda path: before)
    with pytest.raises(OSError, match="it is a named pipe"):
        open_file(file)


def test_larger_files_are_read_no_further_than_the_limit(file: Path) -> None:
    assert read_bytes(file, limit=7) == b"content"
    with pytest.raises(OSError, match="more than"):
        read_bytes(file, limit=6)
    with open(file, "wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(OSError, match="it has more than 64 MB"):
        read_text(file)


@pytest.mark.parametrize(("name", "packed"), [("a.xz", lzma.compress), ("a.gz", gzip.compress), ("a", bytes)])
def test_a_compressed_file_is_unpacked_no_further_than_the_limit(
    tmp_path: Path, name: str, packed: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(packed(TEXT.encode()))
    assert read_compressed(tmp_path / name) == TEXT
    (tmp_path / name).write_bytes(packed(bytes(1 << 21)))
    with pytest.raises(OSError, match="it has more than 1 MB"):
        read_compressed(tmp_path / name, limit=1 << 20)


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_read_as_editors_leave_it(file: Path, encoding: str, end: str) -> None:
    file.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert read_text(file) == TEXT


def test_big_endian_marks_are_known(file: Path) -> None:
    for encoding in ("utf-16-be", "utf-32-be"):
        file.write_bytes(("\ufeff" + TEXT).encode(encoding))
        assert read_text(file) == TEXT


def test_an_empty_file_is_an_empty_text(file: Path) -> None:
    file.write_bytes(b"")
    assert read_text(file) == ""


@pytest.mark.parametrize("content", [b"ED: 1\0\0\0\n", bytes(100), b"\xff\xfe\x00", b"\xff\xfea\0\0\0"])
def test_bytes_that_are_no_text_are_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"no text|truncated"):
        read_text(file)


def test_whether_something_is_there_is_never_guessed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_there(file)
    assert is_there(file.parent)
    assert not is_there(file / "below a file")
    assert not is_there(file.with_name("absent"))

    def forbid(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(plain_files.os, "stat", forbid)
    with pytest.raises(PermissionError, match="Permission denied"):
        is_there(file)
