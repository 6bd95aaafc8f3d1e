"""Ctrl-C leaves a checkpoint to continue from."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentaug.training.interrupt import Interrupted
from tests.support.random_streams import seed_all
from tests.support.tiny_training import (
    At,
    same_weights,
    squares,
    tiny_trainer,
    weights_of,
)

NOTHING = "^$"  # that Ctrl-C says


def press_ctrl_c(trainer: object) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("num_workers", "pressed_after"), [(0, 1), (0, 3), (2, 1)])
def test_ctrl_c_leaves_a_checkpoint_to_continue_from(tmp_path: Path, num_workers: int, pressed_after: int) -> None:
    straight = tiny_trainer()
    seed_all(5)
    straight.fit(squares(num_workers=num_workers), squares(), epochs=2)

    interrupted = tiny_trainer(folder=tmp_path, callbacks=[At(pressed_after, press_ctrl_c)])
    seed_all(5)
    with pytest.raises(Interrupted, match=NOTHING):
        interrupted.fit(squares(num_workers=num_workers), squares(), epochs=2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert interrupted.global_step == pressed_after

    resumed = tiny_trainer()
    resumed.resume(tmp_path / "last.pt")
    resumed.fit(squares(num_workers=num_workers), squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(resumed))


def test_ctrl_c_during_validation_keeps_the_epoch(tmp_path: Path) -> None:
    def validation() -> Iterator[Any]:
        yield from squares()
        press_ctrl_c(None)
        yield from squares()

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return validation()

    interrupted = tiny_trainer(folder=tmp_path)
    seed_all(5)
    with pytest.raises(Interrupted, match=NOTHING):
        interrupted.fit(squares(), Loader(), epochs=2)
    resumed, straight = tiny_trainer(), tiny_trainer()
    resumed.resume(tmp_path / "last.pt")
    assert (resumed.epoch, resumed.global_step) == (0, 3)
    resumed.fit(squares(), squares(), epochs=2)
    seed_all(5)
    straight.fit(squares(), squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(resumed))
    assert len(resumed.history) == 2


@pytest.mark.parametrize(("steps", "epoch"), [(3, 1), (5, 1)])
def test_ctrl_c_in_the_last_update_leaves_its_epoch_to_be_scored(tmp_path: Path, steps: int, epoch: int) -> None:
    straight = tiny_trainer()
    seed_all(5)
    straight.fit(squares(), squares(), max_steps=steps)

    interrupted = tiny_trainer(folder=tmp_path, callbacks=[At(steps, press_ctrl_c)])
    seed_all(5)
    with pytest.raises(Interrupted, match=NOTHING):
        interrupted.fit(squares(), squares(), max_steps=steps)

    resumed = tiny_trainer()
    resumed.resume(tmp_path / "last.pt")
    resumed.fit(squares(), squares(), max_steps=steps)
    assert (resumed.epoch, resumed.global_step) == (straight.epoch, straight.global_step) == (epoch, steps)
    assert same_weights(weights_of(straight), weights_of(resumed))
    for one, other in zip(straight.history, resumed.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice(trainer: Any) -> None:
        press_ctrl_c(trainer)
        press_ctrl_c(trainer)
        pytest.fail("should have stopped")

    trainer = tiny_trainer(folder=tmp_path, callbacks=[At(2, twice)])
    with pytest.raises(KeyboardInterrupt, match=NOTHING) as stopped:
        trainer.fit(squares(), epochs=1)
    assert stopped.type is KeyboardInterrupt  # and not ours, which waits for a moment to continue from
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_without_a_folder_is_just_ctrl_c() -> None:
    trainer = tiny_trainer(callbacks=[At(2, press_ctrl_c)])
    with pytest.raises(Interrupted, match=NOTHING):
        trainer.fit(squares(), epochs=1)
    assert trainer.global_step == 2


def test_a_handler_of_the_users_own_stays_in_charge() -> None:
    pressed = []
    previous = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        trainer = tiny_trainer(callbacks=[At(2, press_ctrl_c)])
        trainer.fit(squares(), epochs=1)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert (pressed, trainer.epoch) == ([1], 1)
