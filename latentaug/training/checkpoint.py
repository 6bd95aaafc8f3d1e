"""Checkpoints that are whole or absent, are read back exactly, and are refused if they are not as they were written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from latentaug.training.digest import check_seal, seal
from latentaug.training.files import atomic_write, open_file
from latentaug.training.plain import NotPlainError, plain, restored

logger = logging.getLogger(__name__)


@dataclass
class Position:
    """How far training has come, down to the batch."""

    epoch: int = 0
    step: int = 0
    batches: int = 0  # drawn from the loader in the running epoch
    seconds: float = 0.0  # that it has taken
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the losses over those batches, on the device
    epoch_start: dict[str, Any] = field(default_factory=dict)  # random state before the first of them was drawn
    history: list[dict[str, float]] = field(default_factory=list)
    counted: int | Tensor = 0  # batches whose losses are in the sums: those that were finite
    length: int | None = None  # batches of the running epoch in all, where the loader says so
    elsewhere: bool = False  # whether another number of ranks began the running epoch
    first_batch: str = ""  # digest of the running epoch's first batch

    def begin(self, length: int | None) -> None:
        """Go on with a loader of a length; an epoch that other ranks began, at the same fraction of it."""
        if self.elsewhere:
            self.first_batch = ""
        if self.elsewhere and self.length and length:
            self.batches = self.batches * length // self.length
        elif self.batches and length and length != (self.length or length):
            logger.warning(
                "The running epoch was begun with a loader of %d batches, of which %d were used; this one has %d. Its "
                "first %d are left out, which need not be those. Pass the loader that it was begun with.",
                self.length,
                self.batches,
                length,
                self.batches,
            )
        self.length, self.elsewhere = length, False


class _Told:
    """A file that remembers why it could not be written: `torch.save` raises another error."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    error: OSError | None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain data to `path`, all or nothing, with a digest.

    Raises:
        NotPlainError: The state holds something that can't be read back; nothing is written.
        OSError: The file can't be written; the message names it.
    """
    made = {name: plain(part, name) for name, part in state.items()}
    with atomic_write(path) as file:
        told = _Told(file)
        try:
            torch.save(made, told)  # type: ignore[arg-type]
            file.flush()
        except RuntimeError:
            if told.error is not None:
                raise told.error from None
            raise
        _see_that_it_can_be_read(file, path)
        seal(file)


def load_checkpoint(path: Path, keys: set[str]) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, without running any code from the file.

    Args:
        path: The file.
        keys: What it must hold.

    Raises:
        OSError: The file can't be opened.
        ValueError: The file is damaged, something else than a checkpoint, or lacks one of the keys.
    """
    with open_file(path) as file:
        check_seal(file, path)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of half a dozen kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} can't be read as a checkpoint; it may be damaged or something else ({reason})."
            ) from error
    missing = sorted(keys - set(state)) if isinstance(state, dict) else sorted(keys)
    if missing:
        raise ValueError(f"{path} is no checkpoint that can be resumed: it lacks {', '.join(map(repr, missing))}.")
    return {name: restored(part) for name, part in state.items()}


_COUNTING = ("hard_schedule", "saliency_schedule", "image_transform", "shape_transform", "style")
"""Parts of a `CooperativeModel` that count batches, if they are scheduled: settings, and no weights."""


def weights_for(model: nn.Module, weights: object, source: str) -> dict[str, Any]:
    """Return weights that were read as a model takes them, or refuse them before any is loaded.

    They have the counts of batches that the model has, whatever was scheduled where they were written: a count that
    they lack stays as it is, and one that the model lacks is left out. So is what version 0.1.0 had among a model's
    weights, those of a loss that is a module.

    Raises:
        ValueError: Names or shapes differ; the message says which.

    Example:
        >>> from latentaug.cooperative.shortcuts import Every
        >>> model, weights = nn.Module(), {"style.0._extra_state": torch.tensor(7)}
        >>> model.hard_schedule = Every(3)
        >>> weights_for(model, weights, "a.pt")
        {'hard_schedule._extra_state': tensor(0)}
    """
    own = model.state_dict()
    if isinstance(weights, dict):
        fitting = {name: value for name, value in weights.items() if name in own or not _is_left_out(name)}
        weights = {**{name: value for name, value in own.items() if _is_count(name)}, **fitting}
    return check_same(own, weights, source, model)


def _is_left_out(name: str) -> bool:
    return _is_count(name) or name.startswith("loss.")


def _is_count(name: str) -> bool:
    return name.partition(".")[0] in _COUNTING and name.endswith("._extra_state")


def check_same(expected: Mapping[str, Any], given: object, source: str, model: nn.Module) -> dict[str, Any]:
    """Return tensors, or refuse those that have other names or shapes than a model's.

    Raises:
        ValueError: Names or shapes differ; the message says which.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{source} has no weights, but a {type(given).__name__} in their place.")
    own, other = ({name: _shape(value) for name, value in one.items()} for one in (expected, given))
    differences = [f"'{name}' is missing" for name in own if name not in other]
    differences += [f"'{name}' is unknown to the model" for name in other if name not in own]
    differences += [
        f"'{name}' is {other[name]}, not {own[name]}" for name in own if name in other and own[name] != other[name]
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"{source} doesn't fit this {type(model).__name__}: {'; '.join(differences[:3])}{more}.")
    return dict(given)


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _see_that_it_can_be_read(file: BinaryIO, path: Path) -> None:
    """See that all but the numbers themselves comes back; that takes milliseconds."""
    file.seek(0)
    try:
        torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:
        raise NotPlainError(f"{path} would hold what can't be read back: {str(error).splitlines()[0]}") from error
