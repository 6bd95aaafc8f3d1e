"""Random streams that are left where they were."""

from __future__ import annotations

import pytest
import torch

from latentaug.tracing.random_state import RandomState, preserved_random_state
from tests.support.compare import same
from tests.support.random_streams import random_state, seed_all


def test_random_streams_are_left_where_they_were() -> None:
    seed_all(1)
    before = random_state()

    def block() -> None:
        with preserved_random_state(torch.device("cpu")) as entry:
            seed_all(2)
            assert random_state() != before
            entry.restore()
            assert random_state() == before
            seed_all(3)
            raise ZeroDivisionError("in the block")

    with pytest.raises(ZeroDivisionError, match="in the block"):
        block()
    assert random_state() == before


def test_a_random_state_of_a_device_without_streams_of_its_own() -> None:
    state = RandomState.capture(torch.device("meta"))
    torch.rand(1)
    state.restore()
    assert state.accelerator is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_stream_of_an_accelerator_is_kept() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    with preserved_random_state(device):
        first = torch.rand(3, device=device)
    assert same(torch.rand(3, device=device), first)
