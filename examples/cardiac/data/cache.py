"""Frames on disk, so that volumes are read, preprocessed and corrupted once, and not in every run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cardiac.data.nifti import MAX_FILE_BYTES
from cardiac.data.readers import Frame
from study.data.plain_files import open_file, read_text

FORMAT = 1
"""Of an entry's files: raise it with every change of what they hold."""

_CODE = (
    "readers.py",
    "nifti.py",
    "../../study/data/plain_files.py",
    "preprocess.py",
    "corruptions.py",
)  # what decides about voxels, defaults and constants included
_ARRAYS = ("image", "labels")
_FILES = ("*.nii.gz", "*.nii", "Info.cfg")
_PATIENTS = ("*", "*/*", "*/*/*")  # where a data set's layout may have the patients' folders
_TICK = 2.0  # seconds within which a file may change without another time stamp, on the coarsest of file systems


class Cache:
    """A folder of frames that took long to make, kept under everything that their voxels depend on.

    What comes from it equals bit for bit what was put there, and is mapped into memory rather than read. An entry is
    built under another name and renamed when whole, so an interruption leaves nothing that looks finished, and two runs
    may make the same one at once. Every entry holds digests of its files, and a damaged one is made anew.

    Entries are never removed, since other runs may use them; the folder may be deleted whenever no run does.

    Args:
        folder: The folder; made when needed. None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._digests = {} if folder is None else _read_object(folder / "digests.json")
        self._warned = False

    def frames(self, make: Callable[[], list[Frame]], source: str | None, **parameters: Any) -> list[Frame]:
        """Return what `make` returns, without calling it if an entry holds that.

        Args:
            make: Makes the frames. Its errors pass, and leave no entry.
            source: Stands for the files that the frames come from, see `fingerprint`. None keeps nothing.
            parameters: Everything else that decides about the frames, as plain data.
        """
        if self.folder is None or source is None:
            return make()
        recipe = json.dumps({"source": source, **_versions(), **parameters}, indent=1, sort_keys=True)
        name = hashlib.sha256(recipe.encode()).hexdigest()[:16]
        kept = _load(self.folder / name)
        if kept is not None:
            return kept
        made = make()
        self._put(self.folder, name, lambda entry: _build(entry, made, recipe))
        return made

    def fingerprint(self, root: Path, *, part: str = ".", patients: Collection[str] | None = None) -> str | None:
        """Return a digest of a data set: of which files it has, and of what those hold that are read.

        A file that was digested before is looked into again only if its size, times or inode have changed.

        Args:
            root: The data set's folder, in any layout of `data`.
            part: The folder in it that volumes are read from.
            patients: Whose volumes are read; None means everybody's.

        Returns:
            The digest; None where nothing is kept, or where a file cannot be read, which its reader will say better.
        """
        if self.folder is None:
            return None
        known = dict(self._digests)
        try:
            contents = {
                str(path.relative_to(root)): self._digest(path) if _is_read(path, root / part, patients) else ""
                for path in _data_files(root)
            }
        except OSError:
            return None
        if self._digests != known:
            self._put(self.folder, "digests.json", lambda file: _write_object(file, self._digests))
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    def _digest(self, path: Path) -> str:
        key, stat = str(path.absolute()), path.stat()
        if stat.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, "it is larger than any that is read", str(path))
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self._digests.get(key)
        if isinstance(known, list) and known[:-1] == stamp:
            return str(known[-1])
        digest = _digest(path)
        if time.time() - max(stat.st_mtime, stat.st_ctime) > _TICK:
            self._digests[key] = [*stamp, digest]
        return digest

    def _put(self, folder: Path, name: str, build: Callable[[Path], None]) -> None:
        """Build a file or folder in full, then put it in its place; where that cannot be, say so once and go on."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as scratch:
                built = Path(scratch) / name
                build(built)
                if built.is_dir():
                    shutil.rmtree(folder / name, ignore_errors=True)  # it is damaged, or it would have been used
                publish(built, folder / name)
        except OSError as error:
            if not self._warned:
                reason = error.strerror or str(error)
                advice = "Going on without; pass another --cache, or --no-cache."
                print(f"warning: {folder}: cannot be written to ({reason}). {advice}", file=sys.stderr)
            self._warned = True


def user_cache() -> Path:
    """Return this project's folder below the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentaug"


def publish(built: Path, target: Path) -> None:
    """Give a file or folder that is whole its name, unless another run was faster with a folder of the same content."""
    try:
        built.replace(target)
    except OSError:
        if not target.is_dir():
            raise


def _build(entry: Path, frames: list[Frame], recipe: str) -> None:
    entry.mkdir()
    for name in _ARRAYS:
        np.save(entry / f"{name}.npy", np.concatenate([getattr(frame, name) for frame in frames]))
    (entry / "recipe.json").write_text(recipe)
    others = [field.name for field in fields(Frame) if field.name not in _ARRAYS]
    about = [{name: getattr(frame, name) for name in others} | {"depth": len(frame.image)} for frame in frames]
    (entry / "frames.json").write_text(json.dumps(about, indent=1))
    _write_object(entry / "digests.json", {path.name: _digest(path) for path in sorted(entry.iterdir())})


def _load(entry: Path) -> list[Frame] | None:
    """Read an entry; None if there is none, or if a file of it is not what was written."""
    digests = _read_object(entry / "digests.json")
    try:
        if not digests or any(_digest(entry / name) != digest for name, digest in digests.items()):
            return None
        # Mapped for copying on write, which never reaches the file: torch warns of arrays that may only be read.
        images, labels = (np.asarray(np.load(entry / f"{name}.npy", mmap_mode="c")) for name in _ARRAYS)
        frames, start = [], 0
        for about in json.loads(read_text(entry / "frames.json")):
            stop = start + about.pop("depth")
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in about.items()
            }
            frames.append(Frame(image=images[start:stop], labels=labels[start:stop], **values))
            start = stop
        return frames
    except OSError:
        return None


def _data_files(root: Path) -> list[Path]:
    """Every file that says something about a data set; others, such as results below it, may come and go."""
    patterns = ["*M&Ms*.csv", *(f"{place}/{name}" for place in _PATIENTS for name in _FILES)]
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def _is_read(path: Path, part: Path, patients: Collection[str] | None) -> bool:
    """Whether a reader opens a file, of which it may need no more than to know that it is there."""
    if path.suffix == ".csv":
        return True
    chosen = patients is None or path.parent.name.removeprefix("patient") in patients
    return chosen and path.is_relative_to(part) and not path.name.endswith(("_4d.nii.gz", "_4d.nii"))


@cache
def _versions() -> dict[str, Any]:
    code = {name: _digest(Path(__file__).parent / name) for name in _CODE}
    return {"format": FORMAT, "code": code, "numpy": np.__version__}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; one that is missing or damaged is empty."""
    try:
        return dict(json.loads(read_text(path)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _write_object(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1))
