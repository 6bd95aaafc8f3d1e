"""The global random streams: none of them is forgotten."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.support.random_streams import random_state, seed_all

DRAWS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.rand(()),
    "Python": random.random,
    "NumPy": lambda: np.random.rand(),  # noqa: NPY002
}


def test_random_state_notices_a_draw_from_any_stream() -> None:
    for draw in DRAWS.values():
        before = random_state()
        assert random_state() == before
        draw()
        assert random_state() != before


@pytest.mark.parametrize("stream", range(len(DRAWS)), ids=DRAWS)
def test_a_seed_decides_every_stream_and_another_seed_another_draw(stream: int) -> None:
    seed_all(1)
    first = random_state()[stream]
    list(DRAWS.values())[stream]()
    assert random_state()[stream] != first
    seed_all(1)
    assert random_state()[stream] == first
    seed_all(2)
    assert random_state()[stream] != first
