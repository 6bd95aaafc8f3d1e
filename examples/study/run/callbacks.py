"""What happens beside the steps of a training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentaug import Callback

SECONDS = 120.0
"""What a killed run loses at most."""


class SaveOften(Callback):
    """Write a checkpoint in the middle of an epoch too, where that takes long.

    Args:
        path: The checkpoint that the trainer writes at the end of each epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, trainer: Any) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_step(self, trainer: Any, losses: Mapping[str, Any]) -> None:
        """Save, if it is time."""
        if time.monotonic() - self._saved >= SECONDS:
            trainer.save(self.path)
            self._saved = time.monotonic()

    def on_epoch(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        """Start the clock anew: the trainer has saved."""
        self._saved = time.monotonic()
