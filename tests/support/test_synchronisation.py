"""The detector of waits detects them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.synchronisation import NoSync

WAITS: dict[str, Callable[[], object]] = {
    "item": lambda: torch.ones(()).item(),
    "float": lambda: float(torch.ones(())),
    "truth": lambda: bool(torch.ones(()) > 0),
    "nonzero": lambda: torch.ones(3).nonzero(),
    "mask": lambda: torch.ones(3)[torch.ones(3) > 0],
    "masked select": lambda: torch.ones(3).masked_select(torch.ones(3) > 0),
    "put by a mask": lambda: torch.ones(3).index_put((torch.ones(3) > 0,), torch.zeros(3)),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_what_an_accelerator_would_have_to_answer_is_refused(wait: Callable[[], object]) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoSync():
        wait()


def test_what_an_accelerator_does_by_itself_passes() -> None:
    with NoSync():
        assert torch.where(torch.ones(3) > 0, torch.ones(3), 2).sum().shape == ()
        assert torch.ones(3)[torch.tensor([0, 2])].shape == (2,)
