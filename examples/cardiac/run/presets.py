"""Presets: everything about a run, but for its data, that changes its numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from cardiac.data.corruptions import SPACINGS
from cardiac.data.readers import DataError
from cardiac.data.split import DRAWS, SETTINGS
from cardiac.methods.augmentations import AUGMENTATIONS, NONE
from latentaug import is_native

SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16")
WEIGHTS = ("best", "last")


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
    equal_time: bool = _option(False, "take fewer iterations by as much as one costs more than the network alone")
    learning_rate: float = _option(1e-4, "Adam's learning rate")
    schedule: str = _option("constant", "'constant', or 'cosine' to let the learning rate fall to 0 over the training")
    warm_up: int | None = _option(None, "iterations over which the learning rate rises to its value at first")
    weights: str = _option("best", "which are tested: those that validate 'best', or the 'last' of the training")
    precision: str = _option("float32", "'float32', or 'bfloat16' where that is faster")
    augment: str = _option(NONE, f"further augmentation of images, of every method: {', '.join(AUGMENTATIONS)}")
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
        if self.augment not in AUGMENTATIONS:
            wanted["augment"] = f"one of {(*AUGMENTATIONS,)}"
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
