"""Files as users have them: opened only if they are files, and their text read as editors leave it.

What cannot be read ends in an `OSError` or a `ValueError`; who knows what the file is for says what would do.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

TEXT_LIMIT = 1 << 26
"""Bytes of the largest text file that is read: a table of all patients takes a thousandth of it."""

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # it begins like the one of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


_UNPACKED: Mapping[str, Callable[[BinaryIO], Any]] = {".xz": lzma.open, ".gz": gzip.open}


def open_file(path: Path) -> BinaryIO:
    """Open a file to read its bytes, and nothing but a file: a pipe is not waited for, a device not touched.

    Raises:
        OSError: it is missing, may not be read, or is no file; `strerror` says which.
    """
    _see_that_it_is_a_file(os.stat(path), path)
    return open(path, "rb", opener=_open_without_waiting)


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises:
        OSError: it cannot be opened, or is larger.
    """
    with open_file(path) as file:
        return _at_most(limit, file, path)


def read_text(path: Path) -> str:
    r"""Read a text file, its lines ended by "\n": UTF-8, UTF-16 or UTF-32 with or without a mark, else Latin-1.

    Raises:
        OSError: it cannot be opened, or has more than `TEXT_LIMIT` bytes.
        ValueError: it holds no text.
    """
    text = _decode(read_bytes(path))
    if "\0" in text:
        raise ValueError("it holds bytes that are no text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_compressed(path: Path, limit: int = TEXT_LIMIT) -> str:
    """Read a text of at most `limit` bytes in UTF-8 from a file compressed as its name says: ".xz", ".gz", or not.

    Raises:
        OSError: it cannot be opened, holds more, or is damaged.
    """
    try:
        with open_file(path) as file:
            unpacked = _UNPACKED[path.suffix](file) if path.suffix in _UNPACKED else file
            return _at_most(limit, unpacked, path).decode()
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise OSError(errno.EIO, f"it is damaged: {error}", str(path)) from None


def is_there(path: Path) -> bool:
    """Return whether there is anything of that name, file or not.

    Raises:
        OSError: that cannot be told, such as in a folder that may not be entered.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _at_most(limit: int, file: Any, path: Path) -> bytes:
    data: bytes = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit >> 20} MB", str(path))
    return data


def _see_that_it_is_a_file(status: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def _open_without_waiting(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _see_that_it_is_a_file(os.fstat(descriptor), path)  # it may have been replaced since
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _decode(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    zeros = data[::2].count(0), data[1::2].count(0)  # UTF-16 without a mark has one of the two for every Latin letter
    if max(zeros) > len(data) / 4 > 4 * min(zeros):
        return data.decode("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
