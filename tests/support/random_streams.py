"""The global random streams, all together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> tuple[Any, ...]:
    """Return the next draw of each global stream, without drawing it."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    drawn = float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    return drawn


def seed_all(seed: int) -> None:
    """Seed every global stream."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
