"""What comes in at the door; wrong calls of all kinds are in `tests/faults/test_wrong_calls.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentaug.training.arguments import check_callbacks, check_fit, check_images, check_loader
from latentaug.training.callbacks import Callback
from latentaug.training.trainer import CooperativeTrainer
from tests.support.tiny_training import headless_coop


class Batches:
    """Yields by index, as old data sets do."""

    def __getitem__(self, index: int) -> int:
        return [1, 2][index]


class Duck:
    """A callback by its methods alone."""

    def on_start(self, trainer: Any) -> None: ...


@pytest.mark.parametrize("loader", [[], (), iter([]), Batches(), (one for one in [1])])
def test_all_that_yields_batches_is_a_loader(loader: Any) -> None:
    check_loader("loader", loader)
    check_fit(loader, None, 1, None)
    check_fit(loader, loader, None, 5)


def test_callbacks_may_be_of_any_class() -> None:
    check_callbacks([Callback(), Duck()])
    check_callbacks(())
    with pytest.raises(TypeError, match=r"Each callback must be an instance of latentaug.Callback; got the class Duck"):
        check_callbacks([Duck])


def test_there_is_always_a_step() -> None:
    with pytest.raises(
        TypeError, match=r"step must be a callable; got None\. Leave it out, or pass cooperative_backward"
    ):
        CooperativeTrainer(headless_coop(), step=None)  # type: ignore[arg-type]


def test_images_are_a_tensor() -> None:
    check_images(torch.rand(1))
    with pytest.raises(TypeError, match=r"images must be a tensor \[B, C, \*S\]; got \[\]"):
        check_images([])
