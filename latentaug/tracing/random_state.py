"""Every random stream that a forward pass may draw from, saved and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """Snapshot of every global random stream that a forward pass may draw from."""

    cpu: Tensor
    device: torch.device
    accelerator: Tensor | None
    python: Any  # None where it was left out
    numpy: Any

    @classmethod
    def capture(cls, device: torch.device, *, interpreter: bool = True) -> RandomState:
        """Take the state of torch (CPU and `device`), Python and NumPy; no device synchronisation.

        Without `interpreter`, Python's and NumPy's are left out: they take twenty times as long as the others.
        """
        return cls(
            cpu=torch.get_rng_state(),
            device=device,
            accelerator=None if device.type in ("cpu", "meta") else _backend(device).get_rng_state(device),
            python=random.getstate() if interpreter else None,
            numpy=np.random.get_state() if interpreter else None,  # noqa: NPY002 - the global stream is the one to leave
        )

    def restore(self) -> None:
        """Set every stream back to this snapshot."""
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            _backend(self.device).set_rng_state(self.accelerator, self.device)
        if self.python is not None:
            random.setstate(self.python)
            np.random.set_state(self.numpy)  # noqa: NPY002

    def interpreter_moved(self) -> bool:
        """Tell whether anything was drawn from Python's or NumPy's stream since."""
        _, keys, *rest = np.random.get_state()  # noqa: NPY002
        return random.getstate() != self.python or rest != [*self.numpy[2:]] or not (keys == self.numpy[1]).all()


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[RandomState]:
    """Leave the global random streams as they were found; yields the state at entry.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> with preserved_random_state(torch.device("cpu")):
        ...     inside = torch.rand(())
        >>> bool(torch.rand(()) == inside)
        True
    """
    state = RandomState.capture(device)
    try:
        yield state
    finally:
        state.restore()


def _backend(device: torch.device) -> Any:
    return getattr(torch, device.type)
