"""Presets of the study on nuclei: everything about a run, but for its data, that changes its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentaug import is_native
from study.methods.augmentations import AUGMENTATIONS, NONE
from study.run.presets import STATISTICS_HELP, option, see_that_it_is_right


@dataclass(frozen=True)
class Preset:
    """Everything about a run, but for the data, that changes its numbers.

    Raises:
        DataError: a value is out of range.
    """

    train_size: int = option(10, "images to train on; a draw of fewer is a part of that of more")
    image_size: int = option(256, "side of the centre of an image that networks train on")
    batch_size: int = option(4, "images per iteration: half of them augmented, half the same ones untouched")
    epochs: int = option(200, "passes over the training images, where there is no --iterations")
    iterations: int | None = option(1000, "optimizer steps")
    equal_time: bool = option(False, "take fewer iterations by as much as one costs more than the network alone")
    learning_rate: float = option(1e-3, "Adam's learning rate")
    schedule: str = option("cosine", "'constant', or 'cosine' to let the learning rate fall to 0 over the training")
    warm_up: int | None = option(50, "iterations over which the learning rate rises to its value at first")
    weights: str = option("last", "which are tested: those that validate 'best', or the 'last' of the training")
    statistics: str = option("kept", STATISTICS_HELP)
    precision: str = option("float32", "'float32', or 'bfloat16' where that is faster")
    augment: str = option(NONE, f"further augmentation of images, of every method: {', '.join(AUGMENTATIONS)}")
    draws: int = option(3, "how many draws of training images to run")
    width: int = option(16, "channels of the first level of the paper's network, with --model FTN")
    depth: int = option(4, "its levels")

    def __post_init__(self) -> None:
        wanted = {}
        if self.image_size < 32 or self.image_size % 32:
            wanted["image_size"] = "a multiple of 32"
        see_that_it_is_right(self, wanted)

    @property
    def classes(self) -> int:
        """Labels: background and nuclei."""
        return 2

    @property
    def side(self) -> int:
        """Side of the images that networks train on."""
        return self.image_size


PRESETS = {
    "quick": Preset(image_size=64, iterations=60, warm_up=None, draws=1, depth=3, statistics="renewed"),
    "cpu": Preset(
        statistics="renewed", precision="bfloat16" if is_native("bfloat16", torch.device("cpu")) else "float32"
    ),
}
