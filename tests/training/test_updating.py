"""Updates follow the mean gradient of the batches that are finite, and of all ranks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from latentaug import ranks
from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.training import updating
from latentaug.training.finite import Watched
from tests.support.tiny_training import same_weights, squares, tiny_trainer, update, weights_of


def test_batches_that_are_lost_count_but_are_left_out() -> None:
    (first, second, third), trainer, other = squares(), tiny_trainer(), tiny_trainer()
    lost = (torch.full_like(second[0], math.nan), second[1])
    torch.manual_seed(0)
    losses = update(trainer, [first, lost, third])
    torch.manual_seed(0)
    assert losses == update(other, [first, third])
    assert same_weights(weights_of(trainer), weights_of(other))
    positions = [vars(one._position) for one in (trainer, other)]
    assert [(one["step"], one["batches"], one["counted"]) for one in positions] == [(1, 3, 2), (1, 2, 2)]
    assert update(trainer, [lost]) == {}
    assert (trainer.global_step, trainer._position.batches) == (1, 4)


@pytest.mark.parametrize("step", [cooperative_backward, standard_backward, partial(cooperative_backward)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_gradients_are_averaged_once_for_an_update_unless_a_wrapper_does(
    monkeypatch: pytest.MonkeyPatch, step: Any, wrapped: bool
) -> None:
    averaged: list[Any] = []
    trainer = tiny_trainer(step=step, accumulate=2)
    monkeypatch.setattr(ranks, "several", lambda: True)
    monkeypatch.setattr(updating, "average_gradients", averaged.append)
    monkeypatch.setattr(updating, "is_averaged_by_wrapper", lambda model: wrapped)
    monkeypatch.setattr("latentaug.cooperative.step.is_averaged_by_wrapper", lambda model: True)
    monkeypatch.setattr(Watched, "settle", lambda *_: True)
    update(trainer, [*squares()][:2])
    assert averaged == [] if wrapped else [trainer.model]


def test_an_average_moves_with_each_update() -> None:
    trainer = tiny_trainer(ema=0.5)
    assert trainer._average is not None
    for batch in squares():
        before = {name: one.clone() for name, one in trainer._average.state_dict().items()}
        update(trainer, [batch])
        after = trainer._average.state_dict()
        for name, one in trainer.model.named_parameters():
            expected = (before[name] + one) / 2 if before else one
            torch.testing.assert_close(after[name], expected)
