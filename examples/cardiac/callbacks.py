"""What happens beside the steps of a training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentaug import Callback, CooperativeModel
from latentaug.callbacks import Trainer

SECONDS = 120.0
"""What a killed run loses at most."""


class SaveOften(Callback):
    """Write a checkpoint in the middle of an epoch too, where that takes long.

    Args:
        path: The checkpoint that the trainer writes at the end of each epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_step(self, trainer: Trainer, losses: Mapping[str, Any]) -> None:
        """Save, if it is time."""
        if time.monotonic() - self._saved >= SECONDS:
            trainer.save(self.path)
            self._saved = time.monotonic()

    def on_epoch(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Start the clock anew: the trainer has saved."""
        self._saved = time.monotonic()


class Ramp(Callback):
    """Let the weights of some losses rise from 0 to what they are, in equal parts.

    The weights follow from the number of updates alone, so an interrupted training goes on as it would have.

    Args:
        model: Whose weights.
        names: Of which losses.
        steps: Updates after which the weights are whole.
    """

    def __init__(self, model: CooperativeModel, names: tuple[str, ...], steps: float) -> None:
        self.model, self.steps = model, steps
        self.whole = {name: model.weights[name] for name in names}

    def on_start(self, trainer: Trainer) -> None:
        """Set the weights of the first update."""
        share = min(1.0, (trainer.global_step + 1) / self.steps)
        self.model.weights |= {name: share * weight for name, weight in self.whole.items()}

    def on_step(self, trainer: Trainer, losses: Mapping[str, Any]) -> None:
        """Set the weights of the next update."""
        self.on_start(trainer)
