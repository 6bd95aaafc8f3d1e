"""What a trainer tells the outside while it fits: the callback protocol, progress, and logs."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn, optim

from latentaug.checks import file_path, number, shown
from latentaug.cooperative.objective import HARD
from latentaug.training.files import atomic_write


class Trainer(Protocol):
    """What a callback may rely on; `CooperativeTrainer` is one."""

    @property
    def model(self) -> nn.Module:
        """The model being trained, as the training step sees it."""

    @property
    def optimizer(self) -> optim.Optimizer:
        """Its optimizer."""

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""

    @property
    def global_step(self) -> int:
        """Updates of the weights so far."""

    @property
    def planned_steps(self) -> int | None:
        """Updates when this fit ends; None where the loader has no length."""

    @property
    def history(self) -> list[dict[str, float]]:
        """One row of metrics per epoch, from the first."""

    def save(self, path: str | Path) -> None:
        """Write a checkpoint."""

    def stop(self) -> None:
        """End the fit after the current update."""


class Callback:
    """Base of callbacks: every moment of a fit, nothing done. Override what you need.

    Example:
        >>> class StopWhenGood(Callback):
        ...     def on_epoch(self, trainer, metrics):
        ...         if metrics["val_refined_iou"] > 0.9:
        ...             trainer.stop()
    """

    def on_start(self, trainer: Trainer) -> None:
        """Called when a fit starts, with everything built."""

    def on_step(self, trainer: Trainer, losses: Mapping[str, Any]) -> None:
        """Called after each update, with the losses of its last batch as tensors on the device."""

    def on_epoch(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Called after each epoch, once its checkpoint is written."""

    def on_end(self, trainer: Trainer) -> None:
        """Called when a fit ends, also after an exception or Ctrl-C."""


class Weighted(Protocol):
    """A model whose losses have weights, by name; `CooperativeModel` is one."""

    weights: dict[str, float]


class Ramp(Callback):
    """Let hard examples come in by and by: the weights of their losses rise from 0 to what they are.

    The weights follow from the number of updates alone, so that an interrupted training goes on as it would have. When
    a fit ends, they are whole again.

    Args:
        model: The `CooperativeModel` whose weights rise. Under `torch.distributed`, every rank needs a ramp.
        steps: Updates over which they rise: a third of the training, in `docs/explanation/cardiac-example.md`.
        start: Updates before they begin to rise; until then hard examples are not made, and cost nothing. Default: 0.

    Raises:
        TypeError: The model has no weights of losses, or a number is none.
        ValueError: `steps` is not positive, or `start` is negative.

    Example:
        >>> import torch
        >>> from latentaug import CooperativeModel, CooperativeTrainer, FTN
        >>> images, labels = torch.rand(2, 1, 16, 16), torch.randint(4, (2, 16, 16))
        >>> model = CooperativeModel(FTN(width=2, depth=2), num_classes=4, example=images)
        >>> trainer = CooperativeTrainer(model)
        >>> trainer.callbacks.append(Ramp(model, steps=1000))
    """

    def __init__(self, model: Weighted, steps: float, *, start: float = 0) -> None:
        if not isinstance(getattr(model, "weights", None), Mapping):
            raise TypeError(f"Ramp needs `model` to be a CooperativeModel; got {shown(model)}.")
        self.steps, self.start = number("steps", steps, above=0), number("start", start, least=0)
        self.model = model
        self.whole = {name: weight for name, weight in model.weights.items() if name in HARD}

    def on_start(self, trainer: Trainer) -> None:
        """Set the weights of the first update."""
        share = min(1.0, max(0.0, trainer.global_step + 1 - self.start) / self.steps)
        self.model.weights |= {name: share * weight for name, weight in self.whole.items()}

    def on_step(self, trainer: Trainer, losses: Mapping[str, Any]) -> None:
        """Set the weights of the next update."""
        self.on_start(trainer)

    def on_end(self, trainer: Trainer) -> None:
        """Make the weights whole."""
        self.model.weights |= self.whole


def default_callbacks(folder: str | Path | None = None) -> list[Callback]:
    """Return what a trainer uses unless told otherwise.

    Progress always; with a folder, `log.csv` in it too, and TensorBoard events where that package is installed.
    """
    callbacks: list[Callback] = [Progress()]
    if folder is not None:
        folder = file_path("folder", folder)
        callbacks.append(CSVLog(folder / "log.csv"))
        if importlib.util.find_spec("tensorboard") is not None:
            callbacks.append(TensorBoardLog(folder / "tensorboard"))
    return callbacks


class Progress(Callback):
    """Show scores and the time left: a bar where tqdm is installed, on a terminal and in a notebook; else a line.

    A line tells of an epoch, on stderr.

    Args:
        every: Least number of seconds between two such lines. The first and the last epoch always have theirs.
    """

    def __init__(self, every: float = 30.0) -> None:
        self.every = number("every", every, least=0)

    def on_start(self, trainer: Trainer) -> None:
        """Draw the bar."""
        self._started, self._first_step = time.monotonic(), trainer.global_step
        self._shown, self._held_back = -math.inf, ""
        self._bar: Any = None
        if (sys.stderr.isatty() or _in_notebook()) and importlib.util.find_spec("tqdm") is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of widgets that are not there: the bar is text then
                from tqdm.auto import tqdm

            self._bar = tqdm(total=trainer.planned_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_step(self, trainer: Trainer, losses: Mapping[str, Any]) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update()

    def on_epoch(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Show the epoch's loss and scores."""
        shown = [f"{name} {metrics[name]:.4g}" for name in ("loss", "val_iou", "val_refined_iou") if name in metrics]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(shown))
            return
        now = time.monotonic()
        left = self._time_left(trainer, now - self._started)
        self._held_back = ", ".join([f"epoch {metrics['epoch']}", f"step {trainer.global_step}", *shown, *left])
        if now - self._shown >= self.every:
            self._shown = now
            self._print_line()

    def on_end(self, trainer: Trainer) -> None:
        """Leave the terminal as it should be."""
        if self._bar is not None:
            self._bar.close()
        self._print_line()

    def _print_line(self) -> None:
        if self._held_back:
            print(self._held_back, file=sys.stderr, flush=True)
        self._held_back = ""

    def _time_left(self, trainer: Trainer, elapsed: float) -> list[str]:
        done = trainer.global_step - self._first_step
        if trainer.planned_steps is None or done == 0:
            return []
        seconds = elapsed / done * (trainer.planned_steps - trainer.global_step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return [f"{hours}:{minutes:02}:{seconds:02} left"]


class CSVLog(Callback):
    """Keep a CSV file with one row of metrics per epoch.

    The file is written anew, in one piece, from the trainer's history: after an interruption it is whole, and a resumed
    run neither repeats a row nor keeps one that it is about to redo.

    Args:
        path: The file. Its folder is made when needed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = file_path("path", path)

    def on_epoch(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Write all rows."""
        names = dict.fromkeys(name for row in trainer.history for name in row)
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, fieldnames=list(names))
        table.writeheader()
        table.writerows(trainer.history)
        with atomic_write(self.path) as file:
            file.write(text.getvalue().encode())


class TensorBoardLog(Callback):
    """Write every metric as a TensorBoard scalar over steps. Needs the package tensorboard.

    Args:
        folder: Where the event files go. A resumed run hides what was logged after its checkpoint.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = file_path("folder", folder)

    def on_start(self, trainer: Trainer) -> None:
        """Open an event file."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ModuleNotFoundError(
                f"{type(self).__name__} needs the package tensorboard. Install it, or use CSVLog."
            ) from error
        self._writer = SummaryWriter(str(self.folder), purge_step=trainer.global_step + 1)

    def on_epoch(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Add one point to every curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, trainer.global_step)
        self._writer.flush()

    def on_end(self, trainer: Trainer) -> None:
        """Close the event file."""
        self._writer.close()


def _in_notebook() -> bool:
    """Tell whether this runs in a Jupyter kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})
