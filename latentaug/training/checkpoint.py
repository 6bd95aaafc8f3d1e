"""Checkpoints that survive being cut off: atomic files, random state as plain data, and clear refusals."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from latentaug.tracing.random_state import RandomState


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


class Best(NamedTuple):
    """The best epoch so far, and its weights where no folder keeps them."""

    epoch: int
    value: float
    weights: dict[str, Any] | None


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` only when it is written completely.

    Whatever happens inside the block, or to the process, `path` holds either what it held before or all of the new
    content. Missing parent folders are made.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(path) as file:
        ...     _ = file.write(b"whole")
        >>> path.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain data to `path`, all or nothing."""
    with atomic_write(path) as file:
        torch.save(dict(state), file)


def load_checkpoint(path: Path, keys: set[str]) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, without running any code from the file.

    Args:
        path: The file.
        keys: What it must hold.

    Raises:
        OSError: The file can't be opened.
        ValueError: The file is truncated, something else than a checkpoint, or lacks one of the keys.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of half a dozen kinds, depending on where the file ends
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} can't be read as a checkpoint; it may be cut off or something else ({reason})."
        ) from error
    missing = sorted(keys - set(state)) if isinstance(state, dict) else sorted(keys)
    if missing:
        raise ValueError(f"{path} is no checkpoint that can be resumed: it lacks {', '.join(map(repr, missing))}.")
    return dict(state)


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that aren't this model's, before any is loaded.

    Raises:
        ValueError: Names or shapes differ; the message says which.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    other = {name: tuple(value.shape) for name, value in weights.items() if isinstance(value, Tensor)}
    differences = [f"'{name}' is missing" for name in own if name not in other]
    differences += [f"'{name}' is unknown to the model" for name in other if name not in own]
    differences += [
        f"'{name}' is {other[name]}, not {own[name]}" for name in own if name in other and own[name] != other[name]
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"{source} doesn't fit this {type(model).__name__}: {'; '.join(differences[:3])}{more}.")


def random_state(device: torch.device, loader: object) -> dict[str, Any]:
    """Return the state of the global random streams, and of a loader's own, as tensors and plain data.

    Args:
        device: Whose stream to take beside those of the CPU, Python and NumPy.
        loader: Anything; the generators of a `DataLoader` and of its sampler are found.

    Example:
        >>> device, loader = torch.device("cpu"), [1, 2]
        >>> state = random_state(device, loader)
        >>> first = torch.rand(())
        >>> restore_random_state(state, device, loader)
        >>> bool(torch.rand(()) == first)
        True
    """
    state = RandomState.capture(device)
    name, keys, *rest = state.numpy
    return {
        "cpu": state.cpu,
        "accelerator": state.accelerator,
        "python": state.python,
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "loader": [generator.get_state() for generator in _generators_of(loader)],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device, loader: object) -> None:
    """Set the streams back to what `random_state` returned."""
    name, keys, *rest = state["numpy"]
    numpy_state = (name, keys.numpy().astype(np.uint32), *rest)
    RandomState(state["cpu"], device, state["accelerator"], state["python"], numpy_state).restore()
    for generator, own in zip(_generators_of(loader), state["loader"], strict=False):
        generator.set_state(own)


@contextmanager
def preserved_random_streams(device: torch.device, loader: object) -> Iterator[None]:
    """Leave the global random streams and the loader's own as they were found."""
    state = random_state(device, loader)
    try:
        yield
    finally:
        restore_random_state(state, device, loader)


def _generators_of(loader: object) -> list[torch.Generator]:
    holders = (loader, getattr(loader, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list(dict.fromkeys(generator for generator in found if isinstance(generator, torch.Generator)))
