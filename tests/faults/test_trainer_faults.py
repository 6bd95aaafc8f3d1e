"""What goes wrong during a fit passes through, and leaves modes, files and the trainer in order."""

from __future__ import annotations

import os
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from torch.optim.lr_scheduler import LambdaLR

from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.training.callbacks import Callback
from latentaug.training.trainer import CooperativeTrainer
from tests.support.random_streams import seed_all
from tests.support.tiny_training import At, headless_coop, same_weights, squares, tiny_trainer, weights_of


class Trouble(Exception):
    """What the tests raise."""


class FailingLoader:
    """Yields two batches, then fails, but only in the epoch after the first."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Any:
        self.epoch += 1
        for number, batch in enumerate(squares()):
            if (self.epoch, number) == (2, 2):
                raise Trouble("in the loader")
            yield batch


class FailsAt(Callback):
    """Fails at one of the moments it is told about, and remembers whether it was told of the end."""

    def __init__(self, moment: str) -> None:
        self.moment, self.ended = moment, False

    def on_start(self, trainer: Any) -> None:
        self.fail("start")

    def on_step(self, trainer: Any, losses: Any) -> None:
        if trainer.global_step == 5:
            self.fail("step")

    def on_epoch(self, trainer: Any, metrics: Any) -> None:
        if metrics["epoch"] == 2:
            self.fail("epoch")

    def on_end(self, trainer: Any) -> None:
        self.ended = True

    def fail(self, moment: str) -> None:
        if moment == self.moment:
            raise Trouble(f"in the {moment}")


class Calls(Callback):
    """Remembers that it was started and ended."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_start(self, trainer: Any) -> None:
        self.heard.append("start")

    def on_end(self, trainer: Any) -> None:
        self.heard.append("end")


def failing_step() -> Any:
    """Make a step that fails at the fifth update, with half of its gradients in place."""
    calls = count(1)

    def step(model: Any, images: Any, labels: Any, **options: Any) -> Any:
        if next(calls) == 5:
            standard_backward(model, images, labels, **options)
            raise Trouble("in the model")
        return cooperative_backward(model, images, labels, **options)

    return step


def failing_validation() -> Any:
    yield next(iter(squares()))
    raise Trouble("in the validation")


class Validation:
    def __iter__(self) -> Any:
        return failing_validation()


def fit_with(place: str, trainer: CooperativeTrainer) -> None:
    """Fit two epochs with trouble in one place, always after the first epoch where the place allows it."""
    loader = FailingLoader() if place == "loader" else squares()
    if place in ("start", "step", "epoch"):
        trainer.callbacks.append(FailsAt(place))
    if place == "validation":
        trainer.fit(squares(), squares(), epochs=1)
        trainer.fit(squares(), Validation(), epochs=2)
    trainer.fit(loader, squares(), epochs=2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("place", ["loader", "model", "start", "step", "epoch", "validation"])
def test_trouble_passes_through_and_everything_is_as_it_should_be(tmp_path: Path, place: str, training: bool) -> None:
    calls = Calls()
    step = failing_step() if place == "model" else cooperative_backward
    trainer = tiny_trainer(folder=tmp_path, callbacks=[calls], step=step)
    trainer.model.train(training)
    trainer.model.model.encoder[1].train(not training)
    modes = [module.training for module in trainer.model.modules()]
    with pytest.raises(Trouble, match=f"in the {place}"):
        fit_with(place, trainer)
    assert [module.training for module in trainer.model.modules()] == modes
    assert calls.heard in (["start", "end"], ["start", "end"] * 2)
    assert not any(name.endswith(".tmp") for name in os.listdir(tmp_path))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in trainer.model.modules())
    if place != "start":
        again = tiny_trainer()
        again.resume(tmp_path / "last.pt")
        assert again.epoch == (2 if place == "epoch" else 1)
        again.fit(squares(), squares(), epochs=3)


@pytest.mark.parametrize(
    ("place", "step"), [("loader", 5), ("step", 5), ("validation", 6), ("model", 3), ("schedule", 3)]
)
def test_what_was_trained_before_trouble_is_kept_unless_it_came_halfway(tmp_path: Path, place: str, step: int) -> None:
    def factor(epoch: int) -> float:
        if failing and epoch == 2:
            raise Trouble("in the schedule")
        return 1.0

    def trainer(**options: Any) -> CooperativeTrainer:
        return tiny_trainer(headless_coop(), scheduler=lambda optimizer: LambdaLR(optimizer, factor), **options)

    failing = place == "schedule"
    given = {"step": failing_step()} if place == "model" else {}
    failed = trainer(folder=tmp_path, **given)
    seed_all(7)
    with pytest.raises(Trouble, match=f"in the {place}"):
        fit_with(place, failed)
    failing, resumed = False, trainer()
    resumed.resume(tmp_path / "last.pt")
    assert resumed.global_step == step
    if place == "loader":  # which has drawn from the random streams since
        return
    resumed.fit(squares(), squares(), epochs=2)
    straight = trainer()
    seed_all(7)
    straight.fit(squares(), squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(resumed))


def test_a_fit_that_failed_before_it_trained_replaces_no_checkpoint(tmp_path: Path) -> None:
    tiny_trainer(folder=tmp_path).fit(squares(), epochs=1)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(TypeError, match="needs a loader that yields"):
        tiny_trainer(folder=tmp_path).fit([1, 2], epochs=1)
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize("verb", ["fit", "resume"])
def test_a_fit_is_not_begun_within_a_fit(tmp_path: Path, verb: str) -> None:
    tiny_trainer().save(tmp_path / "a.pt")
    again = {"fit": lambda one: one.fit(squares(), epochs=1), "resume": lambda one: one.resume(tmp_path / "a.pt")}
    trainer = tiny_trainer(callbacks=[At(2, again[verb])])
    with pytest.raises(RuntimeError, match=f"{verb} was called while a fit of this trainer runs"):
        trainer.fit(squares(), epochs=1)
    trainer.callbacks.clear()
    trainer.fit(squares(), epochs=1)
    assert trainer.global_step == 3


def test_a_callback_that_fails_at_the_start_ends_those_that_had_started() -> None:
    first, failing, never = Calls(), FailsAt("start"), Calls()
    trainer = tiny_trainer(callbacks=[first, failing, never])
    with pytest.raises(Trouble, match="in the start"):
        trainer.fit(squares(), epochs=1)
    assert (first.heard, failing.ended, never.heard) == (["start", "end"], False, [])


def test_the_trainer_can_go_on_after_trouble() -> None:
    trainer = tiny_trainer(callbacks=[FailsAt("step")])
    with pytest.raises(Trouble, match="in the step"):
        trainer.fit(squares(), epochs=2)
    trainer.callbacks.clear()
    trainer.fit(squares(), epochs=3)
    assert (trainer.epoch, trainer.global_step) == (3, 9)
    assert [row["epoch"] for row in trainer.history] == [1, 2, 3]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(folder=tmp_path)
    trainer.fit(squares(), epochs=1)
    before = (tmp_path / "last.pt").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        trainer.fit(squares(), epochs=2)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


def test_training_works_in_another_thread() -> None:
    trainer = tiny_trainer()
    thread = threading.Thread(target=trainer.fit, args=(squares(),), kwargs={"epochs": 1})
    thread.start()
    thread.join()
    assert trainer.epoch == 1
