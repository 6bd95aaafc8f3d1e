"""Trainers of latentaug that nnU-Net finds by name: `nnUNetv2_train DATASET CONFIGURATION FOLD -tr NAME`.

nnU-Net puts this folder first on `sys.path` and imports its files by their bare names; so it holds this file alone.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from latentaug import GIN, MixStyle, RandConv
from latentaug.integrations.nnunet.training import ChangesCodes, ChangesImages, Cooperative, FineTunes


class nnUNetTrainerCooperative(Cooperative, nnUNetTrainer):
    """Learns from replays of the network from masked codes too, in every third step."""


class nnUNetTrainerCooperative_5epochs(nnUNetTrainerCooperative):
    """The same for five epochs, to try it out."""

    # nnU-Net reads the arguments of a trainer from its signature.
    @wraps(nnUNetTrainer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_epochs = 5


class nnUNetTrainerCooperativeFineTune(FineTunes, nnUNetTrainerCooperative):
    """Goes on from the finished training of nnU-Net's own trainer, for a tenth as long and at a tenth of the rate."""

    # nnU-Net reads the arguments of a trainer from its signature.
    @wraps(nnUNetTrainer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_epochs //= 10
        self.initial_lr /= 10


class nnUNetTrainerMixStyle(ChangesCodes, nnUNetTrainer):
    """Mixes the style of early codes between samples, in the one pass."""

    def new_transform(self) -> MixStyle:
        """Return what changes the codes."""
        return MixStyle()


class nnUNetTrainerRandConv(ChangesImages, nnUNetTrainer):
    """Changes texture and contrast of half of the images by random convolutions."""

    def new_transform(self) -> RandConv:
        """Return what changes the images."""
        return RandConv(p=0.5)


class nnUNetTrainerGIN(ChangesImages, nnUNetTrainer):
    """Changes intensity and texture of half of the images by small random networks."""

    def new_transform(self) -> GIN:
        """Return what changes the images."""
        return GIN(p=0.5)
