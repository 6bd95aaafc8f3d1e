"""Files that are whole or absent, whoever else writes them and whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from latentaug.training.process import Process

_ABANDONED = 24 * 3600.0
"""Seconds after which an unfinished file of another machine is taken for left behind."""


def open_file(path: Path) -> BinaryIO:
    """Open a file to read its bytes, and nothing but a file: a named pipe would be waited for without end.

    Raises:
        OSError: It is missing, may not be read, or is no file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "It is no file, but a folder, a pipe or a device. Pass another path", str(path))
    return path.open("rb")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` only when it is written completely.

    Whatever happens inside the block, or to the process, `path` holds either what it held before or all of the new
    content; so it does while several processes write it. Missing parent folders are made. What writers left behind
    that were killed is removed.

    Raises:
        OSError: The file can't be written; the message names it, and what it held before is still there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(path) as file:
        ...     _ = file.write(b"whole")
        >>> path.read_text()
        'whole'
    """
    writer = Process.this()
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}-{writer.pid}-{writer.host}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise named(error, path) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    _remove_abandoned(path)


def named(error: OSError, path: Path) -> OSError:
    """Return an error of writing a file that says which, and what to do."""
    reason = error.strerror or str(error)
    whole = " What it held before is still there, whole." if path.exists() else ""
    return OSError(
        error.errno,
        f"{path.name} can't be written in {path.parent}: {reason}.{whole} Make room there, or pass another folder",
        str(path),
    )


def _remove_abandoned(path: Path) -> None:
    """Remove unfinished files of writers that are no more."""
    for unfinished in path.parent.glob(f"{_escaped(path.name)}.*.tmp"):
        _, _, writer = unfinished.name.removeprefix(f"{path.name}.").removesuffix(".tmp").partition("-")
        pid, _, host = writer.partition("-")
        with suppress(OSError):
            known = Process(host, int(pid)) if pid.isdecimal() else None
            near = known is not None and known._replace(namespace=Process.this().namespace).is_near()
            old = time.time() - unfinished.stat().st_mtime > _ABANDONED
            if old or (near and known is not None and not known.lives()):
                unfinished.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
