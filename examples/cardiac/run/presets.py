"""Presets: everything about a run, but for its data, that changes its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cardiac.data.corruptions import SPACINGS
from cardiac.data.readers import STRUCTURES
from cardiac.data.split import DRAWS, SETTINGS
from latentaug import is_native
from study.methods.augmentations import AUGMENTATIONS, NONE
from study.run.presets import STATISTICS_HELP, option, see_that_it_is_right


@dataclass(frozen=True)
class Preset:
    """Everything about a run, but for the data, that changes its numbers; the defaults are the paper's.

    Raises:
        DataError: a value is out of range.
    """

    image_size: int = option(192, "side of the square that volumes are cropped to, and corrupted at")
    crop: int | None = option(None, "side of the centre of it that networks see; all around it counts as background")
    halve: bool = option(False, "let the networks see images at half that resolution")
    depth: int = option(
        4, "levels of the network; its code has image side / 2^depth positions along an axis, 12 in the paper"
    )
    width: int = option(16, "channels of the network's first level")
    batch_size: int = option(20, "slices per iteration: half of them augmented, half the same ones untouched")
    epochs: int = option(600, "passes over the training slices")
    iterations: int | None = option(None, "optimizer steps, in place of --epochs")
    equal_time: bool = option(False, "take fewer iterations by as much as one costs more than the network alone")
    learning_rate: float = option(1e-4, "Adam's learning rate")
    schedule: str = option("constant", "'constant', or 'cosine' to let the learning rate fall to 0 over the training")
    warm_up: int | None = option(None, "iterations over which the learning rate rises to its value at first")
    weights: str = option("best", "which are tested: those that validate 'best', or the 'last' of the training")
    statistics: str = option("kept", STATISTICS_HELP)
    precision: str = option("float32", "'float32', or 'bfloat16' where that is faster")
    augment: str = option(NONE, f"further augmentation of images, of every method: {', '.join(AUGMENTATIONS)}")
    patients: int = option(10, "patients to train on: 10, or 70 for the large-data setting")
    draws: int = option(3, "how many of the three training draws to run")
    corruption_draws: int = option(3, "repetitions of every corruption of every test volume")
    corruption_spacing: str = option("voxel", "'voxel', or 'unit' as in the script that the authors released")

    def __post_init__(self) -> None:
        wanted = {}
        if self.image_size < 16 or self.image_size % 4:
            wanted["image_size"] = "a multiple of 4, at least 16"
        if self.patients not in SETTINGS:
            wanted["patients"] = f"one of {SETTINGS}"
        if self.crop is not None and (self.crop > self.image_size or self.crop < 16 or self.crop % 4):
            wanted["crop"] = f"a multiple of 4, from 16 to the image's {self.image_size}"
        if self.draws > len(DRAWS):
            wanted["draws"] = f"at most {len(DRAWS)}"
        if self.corruption_spacing not in SPACINGS:
            wanted["corruption_spacing"] = f"one of {SPACINGS}"
        see_that_it_is_right(self, wanted)

    @property
    def classes(self) -> int:
        """Labels, the background included."""
        return 1 + len(STRUCTURES)

    @property
    def side(self) -> int:
        """Side of the images that networks see."""
        side = self.crop or self.image_size
        return side // 2 if self.halve else side

    @property
    def padded_size(self) -> int:
        """Side of what is read for training: what augmentation turns into the corners is real, 224 in the paper."""
        return self.image_size * 7 // 24 * 4


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
