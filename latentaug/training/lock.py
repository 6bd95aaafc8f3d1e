"""One trainer for a folder: a file that says who writes there, for as long as it lives."""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from latentaug.training.files import named
from latentaug.training.process import Process

logger = logging.getLogger(__name__)

NAME = "training.lock"

STALE = 300.0
"""Seconds without a sign of life after which a process of another machine is taken for dead."""

_BEAT = 10.0


class FolderInUseError(RuntimeError):
    """Another trainer writes to the folder."""


class FolderLock:
    """A lock that is held; `beat` tells other machines that its process lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told = time.monotonic()

    def beat(self) -> None:
        """Give a sign of life, unless the last one was just now."""
        if time.monotonic() - self._told > _BEAT:
            self._told = time.monotonic()
            with suppress(OSError):
                os.utime(self.path)


@contextmanager
def folder_lock(folder: Path) -> Iterator[FolderLock]:
    """Hold a folder for this trainer, so that another one in it is refused.

    A lock that a killed process left behind is taken over: at once on the machine that it ran on, and elsewhere after
    `STALE` seconds without a sign of life.

    Raises:
        FolderInUseError: Another trainer holds it, in this process or in another one.
        OSError: The folder can't be written to.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with folder_lock(folder):
        ...     [path.name for path in folder.iterdir()]
        ['training.lock']
    """
    path, token = folder / NAME, secrets.token_hex(8)
    content = json.dumps({**Process.this()._asdict(), "token": token}).encode()
    for _ in range(3):  # once more where the holder leaves, or a dead one is removed, in between
        if _create(path, content):
            break
        _remove_if_stale(path)
    else:
        raise FolderInUseError(f"{folder} is used by another trainer that came first. Pass another folder.")
    try:
        yield FolderLock(path)
    finally:
        if _read(path).get("token") == token:
            with suppress(OSError):
                path.unlink()


def _create(path: Path, content: bytes) -> bool:
    """Write the lock, if there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise named(error, path) from error
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except OSError as error:
        raise named(error, path) from error
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise named(error, path) from error
    return True


def _remove_if_stale(path: Path) -> None:
    """Remove the lock of a process that is no more.

    Raises:
        FolderInUseError: It lives, or may do so.
    """
    found = _read(path, patience=0.5)
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return
    holder = _holder(found)
    if holder is not None and holder.is_near():
        if holder.lives():
            raise FolderInUseError(
                f"{path.parent} is used by another trainer, in {holder}, which lives. Wait for it, stop it, or pass "
                "another folder."
            )
    elif age < STALE:
        raise FolderInUseError(
            f"{path.parent} is used by another trainer, in {holder or 'a process that is not known'}, which gave a "
            f"sign of life {max(age, 0):.0f} s ago. Pass another folder; or, if it is no more, wait until that is "
            f"{STALE:.0f} s, or delete {path}."
        )
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if _read(aside) == found:
        logger.warning("%s: took over the lock of %s, which is no more.", path.parent, holder or "an unknown process")
    else:  # another one has taken it over meanwhile: give it back
        with suppress(FileExistsError, OSError):
            os.link(aside, path)
    with suppress(OSError):
        aside.unlink()


def _read(path: Path, patience: float = 0.0) -> dict[str, Any]:
    """Return what a lock says; nothing if it is damaged, or not written completely after a while."""
    deadline = time.monotonic() + patience
    while True:
        try:
            found = json.loads(path.read_bytes())
            return found if isinstance(found, dict) else {}
        except ValueError:
            if time.monotonic() > deadline:
                return {}
            time.sleep(0.05)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return {}
            raise named(error, path) from error


def _holder(found: dict[str, Any]) -> Process | None:
    """Return who wrote a lock; None of one that is damaged."""
    host, pid, started, namespace = (found.get(name) for name in Process._fields)
    if isinstance(pid, bool) or not isinstance(pid, int) or pid < 1:
        return None
    if not (isinstance(host, str) and isinstance(started, str) and isinstance(namespace, str)):
        return None
    return Process(host, pid, started, namespace)
