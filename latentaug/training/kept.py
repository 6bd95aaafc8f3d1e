"""What a trainer keeps in its folder: the last state of a fit, and the best epoch's weights."""

from __future__ import annotations

import copy
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from latentaug import ranks
from latentaug.checks import file_path
from latentaug.training.best import Best, keep_in, save_best, weights_of
from latentaug.training.finite import weights_finite
from latentaug.training.lock import FolderLock, folder_lock
from latentaug.training.plain import plain
from latentaug.training.sharding import whole

logger = logging.getLogger(__name__)

LAST = "last.pt"


class Kept:
    """The best epoch of a run, and the folders where its files are.

    Where there are several ranks, rank 0 alone has a folder that is written to; the others take part.

    Args:
        folder: Where to write; None keeps the best weights in memory.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else file_path("folder", folder)
        self.best: Best | None = None
        self.run = secrets.token_hex(8)
        self.resumed_from: Path | None = None
        self.lock: FolderLock | None = None
        self._writes_anew = True

    @property
    def folders(self) -> list[Path]:
        """Where the best weights may be."""
        return [folder for folder in (self.folder, self.resumed_from) if folder is not None]

    def writes_to(self) -> Path | None:
        """Return the folder of rank 0, to be asked on all ranks."""
        where = None if self.folder is None else str(self.folder.absolute())
        (first, *_) = ranks.gathered("a folder to write to", where)
        return None if first is None else self.folder if first == where else Path(first)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this trainer, and bring the best weights there.

        Raises:
            FolderInUseError: Another trainer holds it.
        """
        with ExitStack() as stack:
            with ranks.failing_together("a folder to lock"):
                if self.folder is not None and ranks.rank() == 0:
                    self.lock = stack.enter_context(folder_lock(self.folder))
                    self._tell_of_another_run(self.folder)
                    keep_in(self.folder, self.best, self.folders)
            stack.callback(setattr, self, "lock", None)
            yield

    def _tell_of_another_run(self, folder: Path) -> None:
        """Say that a checkpoint will be replaced that this trainer neither wrote nor goes on from."""
        goes_on = self.resumed_from is not None and self.resumed_from.resolve() == folder.resolve()
        if self._writes_anew and not goes_on and (folder / LAST).exists():
            logger.warning(
                "%s is of another training, and will be replaced by this one's. To go on from it, stop now and call "
                "resume; to keep it, pass another folder.",
                folder / LAST,
            )
        self._writes_anew = False

    def beat(self) -> None:
        """Tell others that this trainer lives."""
        if self.lock is not None:
            self.lock.beat()

    def see_that_it_can_be(self, state: Mapping[str, Any], history: list[dict[str, float]]) -> None:
        """Refuse at the start what could not be written after an epoch of training.

        Raises:
            TypeError: The state of optimizer and schedule, or the history, holds what can't be read back.
        """
        if self.writes_to() is not None:
            plain(whole(dict(state)), "optimization")
            plain(history, "history")

    def keep_last(self, model: nn.Module, save: Callable[[Path], None]) -> None:
        """Save the last state to the folder, if there is one, unless the model's weights are not finite."""
        folder = self.writes_to()
        if folder is None:
            return
        if weights_finite(model):
            save(folder / LAST)
        else:
            logger.error("%s is not written anew: the weights are not finite.", folder / LAST)

    def keep_best(self, epoch: int, value: float, model: nn.Module) -> None:
        """Keep a model's weights as those of the best epoch, unless they are not finite."""
        if not weights_finite(model):
            logger.error("Epoch %d is not kept as the best one: its weights are not finite.", epoch)
            return
        folder = self.writes_to()
        if folder is None:
            self.best = Best(epoch, value, copy.deepcopy(model.state_dict()), self.run)
            return
        weights = whole(model.state_dict())
        self.best = Best(epoch, value, None, self.run, str(folder.absolute()))
        with ranks.failing_together("the best weights to write"):
            if ranks.rank() == 0:
                save_best(self.best, weights, folder)

    def best_weights(self) -> tuple[dict[str, Any], str]:
        """Return the weights of the best epoch, and where they were found.

        Raises:
            RuntimeError: There is none: no fit had a validation loader.
            FileNotFoundError: The file with its weights is not there.
            ValueError: The file that is there is damaged, or of another run.
        """
        if self.best is None:
            raise RuntimeError("load_best needs an epoch that was evaluated; there is none. Pass val_loader to fit.")
        return weights_of(self.best, self.folders)
