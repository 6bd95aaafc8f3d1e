"""The best epoch of a run, and where its weights are: never those of another run."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from latentaug.training.checkpoint import load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

NAME = "best.pt"


class Best(NamedTuple):
    """The best epoch so far, and its weights where no folder keeps them."""

    epoch: int
    value: float
    weights: dict[str, Any] | None
    run: str = ""
    """By which it is known in its folder; "" in older checkpoints."""
    folder: str = ""
    """Where its weights were written."""

    def __repr__(self) -> str:
        where = "in memory" if self.weights is not None else f"in {self.folder}"
        return f"Best(epoch={self.epoch}, value={self.value:.4g}, weights {where})"


def save_best(best: Best, weights: dict[str, Any], folder: Path) -> None:
    """Write the weights of the best epoch to a folder."""
    save_checkpoint({"model": weights, "epoch": best.epoch, "value": best.value, "run": best.run}, folder / NAME)


def weights_of(best: Best, folders: Iterable[Path]) -> tuple[dict[str, Any], str]:
    """Return the weights of the best epoch, and where they were found.

    Args:
        best: The epoch.
        folders: Where its file may be, beside the folder that it was written to.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: There are such files, but of other runs or other epochs; or one is damaged.
    """
    if best.weights is not None:
        return best.weights, "the trainer"
    paths = dict.fromkeys(folder / NAME for folder in [*folders, *([Path(best.folder)] if best.folder else [])])
    others = []
    for path in paths:
        if not path.exists():
            continue
        state = load_checkpoint(path, {"model"})
        same_run = state.get("run", "") == best.run
        if same_run and (state.get("epoch"), state.get("value")) == (best.epoch, best.value):
            return state["model"], str(path)
        held = f"epoch {state.get('epoch')} of this run" if same_run else "the best epoch of another run"
        others.append(f"{path} holds {held}")
    wanted = f"The best epoch of this run is {best.epoch}, with {best.value:.4g}"
    if others:
        raise ValueError(f"{wanted}; its weights are not there: {'; '.join(others)}.")
    looked = ", ".join(map(str, paths)) or "no folder"
    raise FileNotFoundError(f"{wanted}; its weights are not there: no such file ({looked}).")


def keep_in(folder: Path, best: Best | None, folders: Iterable[Path]) -> None:
    """Bring the best weights of a run that goes on in another folder there, in the place of another run's."""
    if best is None or best.weights is not None:
        return
    try:
        weights, source = weights_of(best, folders)
    except (OSError, ValueError) as error:
        logger.warning("%s", error)
        return
    if source != str(folder / NAME):
        save_best(best, weights, folder)
