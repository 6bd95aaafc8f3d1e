"""Who trains, who validates, who is tested, and for how long: the paper's protocol and the presets."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from cardiac.data.corruptions import SPACINGS
from cardiac.data.readers import DataError
from latentaug.training.optimization import is_native

POOL = tuple(f"{20 * block + place:03}" for block in range(5) for place in (1, 2, 3, 4, 5, 6, 12, 13))
"""The 40 labelled patients that the ten of each draw come from."""

DRAWS = (
    ("073", "061", "012", "053", "046", "044", "022", "092", "004", "001"),
    ("002", "041", "001", "033", "006", "024", "022", "021", "025", "086"),
    ("093", "046", "084", "073", "013", "024", "043", "052", "021", "033"),
)
VALIDATION = (
    ("011", "071", "062", "095", "082"),
    ("011", "071", "002", "022", "095"),
    ("011", "071", "002", "062", "095"),
)
VALIDATION_70 = ("005", "020", "023", "037", "042", "046", "066", "078", "082", "097")
TEST = tuple(f"{20 * block + place:03}" for block in range(5) for place in (7, 8, 9, 10))

SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16")
WEIGHTS = ("best", "last")

SETTINGS = (10, 70)
"""How many patients the paper trains on, in its small-data and its large-data setting."""


@dataclass(frozen=True)
class Split:
    """Three sets of patients that share nobody.

    Args:
        train: Patients to train on, ED and ES frames alike.
        validation: Patients to select the model by.
        test: Patients to report.
        note: What a reader of the results should know about this split; empty if nothing.

    Raises:
        DataError: a set is empty, or a patient is in two.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    note: str = ""

    def __post_init__(self) -> None:
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        for name, patients in sets.items():
            if not patients:
                raise DataError(f"the split has no {name} patient. Give it at least one.")
        for (one, these), (other, those) in combinations(sets.items(), 2):
            if twice := sorted({*these} & {*those}):
                raise DataError(f"patient {', '.join(twice)} is in {one} and in {other}. Leave it in one of them.")

    @property
    def patients(self) -> tuple[str, ...]:
        """Everybody."""
        return self.train + self.validation + self.test


def paper_split(draw: int, setting: int = 10) -> Split:
    """Return one of the paper's splits, without the patients that it validates on *and* trains on.

    In draw 1 of the ten-patient setting the released lists have 002 and 022 both in training and in validation. The
    training draw is kept; validation loses the two. The 70-patient setting has one split, whatever the draw.

    Raises:
        ValueError: no such draw or setting.
    """
    if setting not in SETTINGS:
        raise ValueError(f"`setting` must be one of {SETTINGS}; got {setting}.")
    if setting == 70:
        rest = (f"{number:03}" for number in range(1, 101))
        return Split(tuple(p for p in rest if p not in {*VALIDATION_70, *TEST}), VALIDATION_70, TEST)
    if not 0 <= draw < len(DRAWS):
        raise ValueError(f"`draw` must be in 0..{len(DRAWS) - 1}; got {draw}.")
    train, listed = DRAWS[draw], VALIDATION[draw]
    leaked = sorted({*train} & {*listed})
    note = (
        f"{' and '.join(leaked)} are listed in both training and validation; validation goes without." if leaked else ""
    )
    return Split(train, tuple(p for p in listed if p not in leaked), TEST, note if leaked else "")


def choose_split(available: Collection[str], draw: int, setting: int = 10) -> Split:
    """Return the paper's split of the patients at hand, or, where these are others, a split of their own.

    Patients of the paper that are missing are left out. If that empties a set, everybody at hand is dealt out anew: a
    fifth (at least one) to validation, a fifth to test, the rest to training, shuffled by `draw`. `note` says which.

    Raises:
        DataError: fewer than three patients.
    """
    paper = paper_split(draw, setting)
    sets = [tuple(p for p in patients if p in available) for patients in (paper.train, paper.validation, paper.test)]
    missing = len(paper.patients) - sum(map(len, sets))
    if not missing:
        return paper
    if all(sets):
        return Split(
            *sets, note=f"{paper.note} {missing} of the paper's {len(paper.patients)} patients are not there.".strip()
        )
    if len(available) < 3:
        raise DataError(
            "a training, a validation and a test set need a patient each; found only "
            f"{', '.join(sorted(available)) or 'none'}. Give at least 3."
        )
    shuffled = random.Random(draw).sample(sorted(available), len(available))
    fifth = max(1, len(shuffled) // 5)
    note = "The paper's patients are not there: those that are were dealt out by the draw's number."
    return Split(tuple(shuffled[2 * fifth :]), tuple(shuffled[fifth : 2 * fifth]), tuple(shuffled[:fifth]), note)


def read_split(path: Path, available: Collection[str]) -> Split:
    """Read a split from a JSON file: {"train": [...], "validation": [...], "test": [...]}.

    Raises:
        DataError: the file cannot be read, lacks a list, names a patient who is not there, or names one twice.
    """
    try:
        lists = json.loads(path.read_text())
        split = Split(*(tuple(map(str, lists[name])) for name in ("train", "validation", "test")), note=f"From {path}.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        wanted = '{"train": [...], "validation": [...], "test": [...]}'
        raise DataError(f"{path}: not a split ({type(error).__name__}: {error}). Write {wanted}.") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if missing := sorted({*split.patients} - {*available}):
        raise DataError(
            f"{path}: patient {', '.join(missing)} is not in the data. Correct the number or add the files."
        )
    return split


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Preset:
    """Everything about a run, but for the data, that changes its numbers; the defaults are the paper's.

    Raises:
        DataError: a value is out of range.
    """

    image_size: int = _option(192, "side of the square that volumes are cropped to, and corrupted at")
    crop: int | None = _option(None, "side of the centre of it that networks see; all around it counts as background")
    halve: bool = _option(False, "let the networks see images at half that resolution")
    depth: int = _option(4, "levels of the network; its code has (image side / 2^depth)^2 sites, 12 x 12 in the paper")
    width: int = _option(16, "channels of the network's first level")
    batch_size: int = _option(20, "slices per iteration: half of them augmented, half the same ones untouched")
    epochs: int = _option(600, "passes over the training slices")
    iterations: int | None = _option(None, "optimizer steps, in place of --epochs")
    learning_rate: float = _option(1e-4, "Adam's learning rate")
    schedule: str = _option("constant", "'constant', or 'cosine' to let the learning rate fall to 0 over the training")
    warm_up: int | None = _option(None, "iterations over which the learning rate rises to its value at first")
    weights: str = _option("best", "which are tested: those that validate 'best', or the 'last' of the training")
    precision: str = _option("float32", "'float32', or 'bfloat16' where that is faster")
    patients: int = _option(10, "patients to train on: 10, or 70 for the large-data setting")
    draws: int = _option(3, "how many of the three training draws to run")
    corruption_draws: int = _option(3, "repetitions of every corruption of every test volume")
    corruption_spacing: str = _option("voxel", "'voxel', or 'unit' as in the script that the authors released")

    def __post_init__(self) -> None:
        wanted = {name: "positive" for name, value in asdict(self).items() if not _positive(value)}
        if self.image_size < 16 or self.image_size % 4:
            wanted["image_size"] = "a multiple of 4, at least 16"
        if self.batch_size % 2:
            wanted["batch_size"] = "even, since half of a batch is augmented"
        if self.patients not in SETTINGS:
            wanted["patients"] = f"one of {SETTINGS}"
        if self.crop is not None and (self.crop > self.image_size or self.crop < 16 or self.crop % 4):
            wanted["crop"] = f"a multiple of 4, from 16 to the image's {self.image_size}"
        if self.schedule not in SCHEDULES:
            wanted["schedule"] = f"one of {SCHEDULES}"
        if self.weights not in WEIGHTS:
            wanted["weights"] = f"one of {WEIGHTS}"
        if self.precision not in PRECISIONS:
            wanted["precision"] = f"one of {PRECISIONS}"
        if self.draws > len(DRAWS):
            wanted["draws"] = f"at most {len(DRAWS)}"
        if self.corruption_spacing not in SPACINGS:
            wanted["corruption_spacing"] = f"one of {SPACINGS}"
        for name, rule in wanted.items():
            flag, value = f"--{name.replace('_', '-')}", getattr(self, name)
            raise DataError(f"{flag} must be {rule}; got {value!r}. Change it, or leave it to the preset.")

    @property
    def side(self) -> int:
        """Side of the images that networks see."""
        side = self.crop or self.image_size
        return side // 2 if self.halve else side

    @property
    def padded_size(self) -> int:
        """Side of what is read for training: what augmentation turns into the corners is real, 224 in the paper."""
        return self.image_size * 7 // 24 * 4


def _positive(value: object) -> bool:
    return not isinstance(value, int | float) or isinstance(value, bool) or value > 0


PRESETS = {
    "quick": Preset(
        halve=True,
        depth=3,
        batch_size=8,
        iterations=180,
        learning_rate=1e-3,
        schedule="cosine",
        weights="last",
        draws=1,
        corruption_draws=1,
    ),
    "cpu": Preset(
        crop=160,
        halve=True,
        depth=3,
        batch_size=10,
        iterations=3000,
        learning_rate=1e-3,
        schedule="cosine",
        warm_up=50,
        weights="last",
        precision="bfloat16" if is_native("bfloat16", torch.device("cpu")) else "float32",
    ),
    "paper": Preset(),
}
