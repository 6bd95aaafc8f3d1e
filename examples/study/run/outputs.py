"""The output folder: one configuration, a folder for each training, and what tells finished from unfinished."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from study.data.frame import DataError
from study.data.plain_files import read_text
from study.run.files import write_text
from study.run.scores import VALIDATION, Score, has_scores, read_scores, write_scores


class Finished(NamedTuple):
    """A training that is done: its place, its scores, its log over iterations, and what there is to know about it.

    Attributes:
        validated: Its scores on the patients to choose by; of a training from before there were such, none.
    """

    method: str
    draw: int
    scores: list[Score]
    log: list[dict[str, float]]
    about: dict[str, Any]
    validated: Sequence[Score] = ()


class Outputs:
    """The folder that a run writes to; several runs of one configuration may share it, even at once.

    Args:
        folder: The folder; made by `open`. None means one below `runs/` whose name follows from the configuration.
        configuration: Everything that the numbers depend on.
        defaults: What settings mean that a configuration leaves out, such as one from before they existed.

    Raises:
        DataError: the folder holds results of another configuration.
    """

    def __init__(
        self, folder: Path | None, configuration: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        digest = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = folder or Path("runs") / f"{configuration['preset']}-{digest}"
        self.configuration = configuration
        file = self.folder / "configuration.json"
        there = read_json(file) if file.exists() else configuration
        theirs, ours = {**(defaults or {}), **there}, {**(defaults or {}), **configuration}
        if changed := [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]:
            raise DataError(
                f"{file}: that run has {changed[0]} {theirs.get(changed[0])!r}, this one {ours.get(changed[0])!r}. "
                "Use the same, or another --output."
            )

    def open(self, settings: str) -> None:
        """Make the folder and say what it is for; `settings` are the flags in a form that --config reads."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "configuration.json", json.dumps(self.configuration, indent=2) + "\n")
            write_text(self.folder / "run.toml", settings)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be written to ({error.strerror}). Pass another --output.") from None

    def place(self, method: str, draw: int) -> Path:
        """Return the folder that one training has for itself."""
        return self.folder / method / f"draw-{draw}"

    def is_begun(self, method: str, draw: int) -> bool:
        """Return whether a training has left something to go on from."""
        return (self.place(method, draw) / "last.pt").exists()

    def is_done(self, method: str, draw: int) -> bool:
        """Return whether a training is finished and tested."""
        return (self.place(method, draw) / "done.json").exists()

    def finish(self, method: str, draw: int, scores: list[Score], about: Mapping[str, Any]) -> None:
        """Keep the scores of a training, and then mark it as done."""
        place = self.place(method, draw)
        write_scores(place, scores)
        write_text(place / "done.json", json.dumps(about, indent=2) + "\n")

    def finished(self, methods: Iterable[str]) -> Iterator[Finished]:
        """Read every finished training, by methods in their order and then by draws."""
        for method, draw, about in done_in(self.folder, methods):
            place = self.place(method, draw)
            try:
                scores, log = read_scores(place), _read_log(place / "log.csv")
                validated = read_scores(place, VALIDATION) if has_scores(place, VALIDATION) else []
            except OSError as error:
                raise DataError(
                    f"{error.filename}: cannot be read ({error.strerror}). Remove {place}, to train again."
                ) from None
            yield Finished(method, draw, scores, log, about, validated)


def done_in(folder: Path, methods: Iterable[str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield method, draw and what there is to know of every training that is done, by methods in their order."""
    for method in methods:
        for done in sorted(folder.glob(f"{method}/draw-*/done.json")):
            yield method, int(done.parent.name.removeprefix("draw-")), read_json(done)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that a run wrote.

    Raises:
        DataError: it holds something else.
    """
    try:
        return dict(json.loads(read_text(path)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a file of this script ({error}). Remove it, or pass another --output.") from None


def _read_log(path: Path) -> list[dict[str, float]]:
    """Read losses and mean validation scores; what is logged for single classes is left out."""
    lines = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    left_out = ("epoch", "step", "lr", "seconds")
    names = [n for n in lines[0] if n not in left_out and (not n.startswith("val_") or n.endswith("iou"))]
    return [{"iteration": float(line["step"]), **{n: float(line[n]) for n in names if line[n]}} for line in lines]
