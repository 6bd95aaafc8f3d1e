"""The frames of a run: read, cropped, corrupted and halved as the preset says, each once if there is a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from cardiac.data import shifts
from cardiac.data.cache import Cache
from cardiac.data.corruptions import PARAMETERS, corrupt, recipe
from cardiac.data.readers import (
    Frame,
    count_cropped,
    halve,
    patients_below,
    read_acdc,
    read_mnms,
    read_preprocessed,
)
from cardiac.data.split import Split, choose_split, left_over, read_split
from cardiac.run.cases import Cases
from cardiac.run.presets import Preset
from study.data.frame import DataError
from study.domains import CARDIAC
from study.run.progress import Progress

CLEAN = CARDIAC.clean
"""The column of frames as they are."""


class DataSet(NamedTuple):
    """A data set: what reads it, its folder, and the folder in that which volumes are read from."""

    read: Callable[..., list[Frame]]
    root: Path
    part: str = "."


class _Maker(NamedTuple):
    """What changes a frame, and all that decides about what it makes of one, as plain data."""

    change: Callable[[Frame], Frame]
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Sources:
    """Where data come from.

    Args:
        acdc: The folder of ACDC, which trains, validates and tests.
        mnms: The folder of M&Ms, a test set; None for none.
        external: Further test sets in the preprocessed layout, by the names of their columns.
    """

    acdc: Path
    mnms: Path | None
    external: Mapping[str, Path]

    def __post_init__(self) -> None:
        for name, folder in self.external.items():
            if folder.resolve() == self.acdc.resolve():
                raise DataError(f"{folder}: given as --acdc and as --external {name}. Pass another folder.")

    def test_sets(self) -> dict[str, DataSet]:
        """Return every test set but ACDC, by the name of its column."""
        mnms = {} if self.mnms is None else {"M&Ms": DataSet(read_mnms, self.mnms, "Training/Labeled")}
        return mnms | {name: DataSet(read_preprocessed, folder) for name, folder in self.external.items()}


class Study:
    """What there is to train, validate and test on.

    Args:
        sources: Where data come from.
        preset: Sizes and corruptions.
        split_file: Who trains, validates and is tested; None for the paper's protocol.
        cache: Where frames are kept from run to run; None keeps them in memory alone.
        calibrated: Whether tests score failures and calibration, beside overlap and distances.
    """

    between = 1
    """A training is validated after every pass."""
    half_precision = False
    """Tests are computed as the paper's are."""

    def __init__(
        self,
        sources: Sources,
        preset: Preset,
        split_file: Path | None = None,
        cache: Cache | None = None,
        *,
        calibrated: bool = False,
    ) -> None:
        self.calibrated = calibrated
        self.sources, self.preset, self.split_file = sources, preset, split_file
        self.cache = cache or Cache(None)
        # A folder with volumes is a patient, in every layout; reading them all to learn that would take minutes.
        self.available = patients_below(sources.acdc)
        if not self.available:
            raise DataError(f"{sources.acdc}: no *.nii.gz or *.nii in it. Pass the folder that ACDC was unpacked to.")
        self._acdc: dict[tuple[tuple[str, ...], int], list[Frame]] = {}
        self._made: dict[tuple[object, ...], dict[str, list[Frame]]] = {}
        self._others: dict[str, list[Frame]] = {}

    @property
    def seen(self) -> int | None:
        """Side of the centre of tested frames that networks see."""
        return self.preset.side

    def watch(self) -> Cases:
        """Return what keeps slices and cases to look at."""
        return Cases()

    def split(self, draw: int) -> Split:
        """Return who trains, validates and is tested in a draw."""
        if self.split_file is not None:
            return read_split(self.split_file, self.available)
        try:
            return choose_split(self.available, draw, self.preset.patients)
        except DataError as error:
            raise DataError(f"{self.sources.acdc}: {error}") from None

    def training(self, draw: int) -> list[Frame]:
        """Return the frames to train on, with a margin for augmentation to turn into the corners."""
        return self._shrunk(self._read(self.split(draw).train, self.preset.padded_size))

    def validation(self, draw: int) -> list[Frame]:
        """Return the frames to select the model by."""
        return self._shrunk(self._read(self.split(draw).validation, self.preset.image_size))

    def chosen_by(self, draw: int) -> tuple[str, ...]:
        """Return the patients to choose methods by, whom the draw neither trains nor tests on."""
        return left_over(self.split(draw), self.available)

    def to_choose_by(self, draw: int) -> dict[str, list[Frame]]:
        """Return the frames to choose methods by: as they are, and under shifts that no test has, by severity."""
        patients = self.chosen_by(draw)
        clean = self._read(patients, self.preset.image_size)
        makers = {}
        for kind, severity in product(shifts.SHIFTS, shifts.SEVERITIES):
            change = partial(shifts.shift, kind=kind, severity=severity)
            makers[shifts.column_of(kind, severity)] = [_Maker(change, shifts.recipe(kind, severity))]
        return {CLEAN: self._shrunk(clean), **self._changed(makers, patients)}

    def tests(self, draw: int) -> dict[str, list[Frame]]:
        """Return the test sets by their columns' names: ACDC, ACDC under each corruption, and the others."""
        patients, spacing = self.split(draw).test, self.preset.corruption_spacing
        clean = self._read(patients, self.preset.image_size)
        makers: dict[str, list[_Maker]] = {name: [] for name in PARAMETERS}
        for name, number in product(PARAMETERS, range(self.preset.corruption_draws)):
            change = partial(corrupt, corruption=name, draw=number, spacing=spacing)
            makers[name].append(_Maker(change, recipe(name, number, spacing=spacing)))
        return {CLEAN: self._shrunk(clean), **self._changed(makers, patients), **self._others}

    def load(self, draws: Iterable[int]) -> None:
        """Read everything that the draws need, so that whatever is wrong with the data shows before training."""
        for draw in draws:
            split = self.split(draw)
            self._read(split.train, self.preset.padded_size)
            self._read(split.validation, self.preset.image_size)
            self._read(split.test, self.preset.image_size)
            self._read(self.chosen_by(draw), self.preset.image_size)
        for name, data in self.sources.test_sets().items():
            self._others[name] = self._shrunk(self._frames(data, self.preset.image_size))

    def notes(self, draw: int) -> list[str]:
        """Return what a reader of the results should know about the data."""
        split = self.split(draw)
        counts = f"{len(split.train)} patients train, {len(split.validation)} validate, {len(split.test)} are tested."
        notes = [f"Draw {draw}: {counts} {split.note}".strip()]
        for name, frames in {"ACDC": self._read(split.test, self.preset.image_size), **self._others}.items():
            for patient, cropped in count_cropped(frames).items():
                lost = ", ".join(f"{count} of {structure}" for structure, count in cropped.items())
                notes.append(f"{name}, patient {patient}: the crop cuts labelled voxels off ({lost}).")
        return notes

    def _read(self, patients: tuple[str, ...], size: int) -> list[Frame]:
        if (patients, size) not in self._acdc:
            self._acdc[patients, size] = self._frames(DataSet(read_acdc, self.sources.acdc), size, patients)
        return self._acdc[patients, size]

    def _frames(self, data: DataSet, size: int, patients: tuple[str, ...] | None = None) -> list[Frame]:
        read = partial(data.read, data.root, patients=patients, size=size)
        source = self.cache.fingerprint(data.root, part=data.part, patients=patients)
        return self.cache.frames(read, source, reader=data.read.__name__, patients=patients, size=size)

    def _changed(self, makers: Mapping[str, Sequence[_Maker]], patients: tuple[str, ...]) -> dict[str, list[Frame]]:
        """Return the patients' frames as each of some makers leaves them, by the names of their columns."""
        key = (*makers, patients)
        if key in self._made:
            return self._made[key]
        clean = self._read(patients, self.preset.image_size)
        changed: dict[str, list[Frame]] = {name: [] for name in makers}
        source = self.cache.fingerprint(self.sources.acdc, patients=patients)
        size, halve = self.preset.image_size, self.preset.halve
        several = [(name, maker) for name, repeated in makers.items() for maker in repeated]
        with Progress("corrupting", len(several) * len(clean)) as progress:
            for number, (name, maker) in enumerate(several, start=1):
                make = partial(self._make, clean, maker, progress)
                changed[name] += self.cache.frames(
                    make, source, patients=patients, size=size, halve=halve, **maker.recipe
                )
                progress.reach(number * len(clean))  # those that the cache had went by unseen
        self._made[key] = changed
        return changed

    def _make(self, clean: list[Frame], maker: _Maker, progress: Progress) -> list[Frame]:
        return self._shrunk(maker.change(frame) for frame in progress.over(clean))

    def _shrunk(self, frames: Iterable[Frame]) -> list[Frame]:
        return [halve(frame) if self.preset.halve else frame for frame in frames]
