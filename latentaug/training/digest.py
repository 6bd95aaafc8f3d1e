"""Files that say whether they are still as they were written: a digest of all that is in them, at their end."""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

# A zip archive, as torch.save writes it, ends in a record of this many bytes, and in a comment of a length that the
# record holds last. The digest is that comment: whatever reads zip archives still reads the file.
_END, _SIGNATURE = 22, b"PK\x05\x06"

_PREFIX = b"latentaug sha256 "

_LENGTH = len(_PREFIX) + 64


def seal(file: BinaryIO) -> None:
    """Put the digest at the end of what `torch.save` has written to a file that is open for reading and writing."""
    end = file.seek(0, os.SEEK_END)
    file.seek(end - _END)
    record = file.read(_END)
    if not (record.startswith(_SIGNATURE) and record.endswith(b"\0\0")):
        raise RuntimeError("torch.save wrote something else than a zip archive without a comment.")
    file.seek(end - 2)
    file.write(_LENGTH.to_bytes(2, "little"))
    comment = _PREFIX + _digest(file, end)
    file.seek(end)
    file.write(comment)


def check_seal(file: BinaryIO, path: Path) -> None:
    """See that a file is as it was written, before anything is read from it.

    A file without a digest, as version 0.1.0 wrote them or `torch.save` itself, is checked by what zip archives have of
    their own, which sees damage in tensors but not everywhere.

    Raises:
        ValueError: It is not, or it is no such file.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - _END - _LENGTH, 0))
    tail = file.read()
    record, comment = tail[:_END], tail[_END:]
    if record.startswith(_SIGNATURE) and record.endswith(_LENGTH.to_bytes(2, "little")) and comment[:-64] == _PREFIX:
        if _digest(file, end - _LENGTH) != comment[-64:]:
            raise ValueError(
                f"{path} can't be read as a checkpoint: it is damaged. Its content doesn't give the digest that was "
                "written with it. Take another copy, or an earlier checkpoint."
            )
    elif tail[-_END:].startswith(_SIGNATURE) and tail.endswith(b"\0\0"):
        _check_archive(file, path)
        logger.info("%s has no digest, as older checkpoints have none; only its tensors were checked for damage.", path)
    else:
        raise ValueError(f"{path} can't be read as a checkpoint; it may be cut off, damaged or something else.")
    file.seek(0)


def _digest(file: BinaryIO, length: int) -> bytes:
    file.seek(0)
    digest, left = hashlib.sha256(), length
    while left > 0 and (chunk := file.read(min(left, 2**20))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest().encode()


def _check_archive(file: BinaryIO, path: Path) -> None:
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} can't be read as a checkpoint; it may be cut off or damaged ({error}).") from error
    if damaged is not None:
        raise ValueError(f"{path} can't be read as a checkpoint: it is damaged, in {damaged}. Take another copy.")
