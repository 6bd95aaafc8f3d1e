"""The little training: what compares its weights and draws its batches notices a difference."""

from __future__ import annotations

import pytest
import torch

from tests.support.random_streams import random_state, seed_all
from tests.support.tiny_training import At, same_weights, squares, tiny_coop, tiny_trainer, weights_of


def test_same_weights_notice_another_number_and_another_name() -> None:
    weights = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert same_weights(weights, {name: value.clone() for name, value in weights.items()})
    assert not same_weights(weights, weights | {"b": torch.tensor([0.0, 1e-30])})
    assert not same_weights(weights, {"a": weights["a"]})
    assert not same_weights(weights, weights | {"c": torch.zeros(2)})
    assert not same_weights(weights, {"a": weights["a"], "c": weights["b"]})


def test_weights_are_noted_as_they_were_buffers_too() -> None:
    trainer = tiny_trainer()
    before = weights_of(trainer)
    assert same_weights(before, weights_of(trainer))
    trainer.model.get_buffer("model.encoder.1.running_mean").add_(1)
    assert not same_weights(before, weights_of(trainer))


def test_models_are_alike_and_batches_follow_every_stream() -> None:
    assert same_weights(tiny_coop().state_dict(), tiny_coop().state_dict())
    seed_all(1)
    before = random_state()
    first = next(iter(squares(shuffle=False)))[0]
    assert all(now != then for now, then in zip(random_state(), before, strict=True))
    seed_all(1)
    assert torch.equal(next(iter(squares(shuffle=False)))[0], first)
    seed_all(2)
    assert not torch.equal(next(iter(squares(shuffle=False)))[0], first)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_something_happens_after_the_update_it_is_meant_for_and_no_other(step: int) -> None:
    happened: list[int] = []
    tiny_trainer(callbacks=[At(step, lambda trainer: happened.append(trainer.global_step))]).fit(squares(), epochs=1)
    assert happened == [number for number in (1, 2, 3) if number == step]
