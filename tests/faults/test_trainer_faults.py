"""What goes wrong during a fit passes through, and leaves modes, files and the trainer in order."""

from __future__ import annotations

import os
import threading
from itertools import count
from typing import Any

import pytest
import torch

from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.training.callbacks import Callback
from latentaug.training.trainer import CooperativeTrainer
from tests.support.tiny_training import TinyNet, same_weights, squares, tiny_coop, tiny_trainer, weights_of


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
                raise Trouble
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
            raise Trouble


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
            raise Trouble
        return cooperative_backward(model, images, labels, **options)

    return step


def failing_validation() -> Any:
    yield next(iter(squares()))
    raise Trouble


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
def test_trouble_passes_through_and_everything_is_as_it_should_be(tmp_path, place, training):
    calls = Calls()
    step = failing_step() if place == "model" else cooperative_backward
    trainer = tiny_trainer(folder=tmp_path, callbacks=[calls], step=step)
    trainer.model.train(training)
    trainer.model.model.encoder[1].train(not training)
    modes = [module.training for module in trainer.model.modules()]
    with pytest.raises(Trouble):
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


def test_a_callback_that_fails_at_the_start_ends_those_that_had_started():
    first, failing, never = Calls(), FailsAt("start"), Calls()
    trainer = tiny_trainer(callbacks=[first, failing, never])
    with pytest.raises(Trouble):
        trainer.fit(squares(), epochs=1)
    assert (first.heard, failing.ended, never.heard) == (["start", "end"], False, [])


def test_the_trainer_can_go_on_after_trouble():
    trainer = tiny_trainer(callbacks=[FailsAt("step")])
    with pytest.raises(Trouble):
        trainer.fit(squares(), epochs=2)
    trainer.callbacks.clear()
    trainer.fit(squares(), epochs=3)
    assert (trainer.epoch, trainer.global_step) == (3, 9)
    assert [row["epoch"] for row in trainer.history] == [1, 2, 3]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = tiny_trainer(folder=tmp_path)
    trainer.fit(squares(), epochs=1)
    before = (tmp_path / "last.pt").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        trainer.fit(squares(), epochs=2)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


def test_training_works_in_another_thread():
    trainer = tiny_trainer()
    thread = threading.Thread(target=trainer.fit, args=(squares(),), kwargs={"epochs": 1})
    thread.start()
    thread.join()
    assert trainer.epoch == 1


# Input that doesn't fit -----------------------------------------------------------------------------------------------

IMAGES, LABELS = torch.rand(2, 1, 8, 8), torch.randint(3, (2, 8, 8))

BATCHES: dict[str, tuple[Any, type[Exception], str]] = {
    "a dictionary": (
        {"image": IMAGES, "label": LABELS},
        TypeError,
        r"\(images, labels\), two tensors; got a dict with keys \['image', 'label'\].*Pass batch=",
    ),
    "a tensor": (IMAGES, TypeError, r"two tensors; got a Tensor of shape \(2, 1, 8, 8\)"),
    "three parts": ((IMAGES, LABELS, "name"), TypeError, "got a tuple of 3: Tensor, Tensor, str"),
    "arrays": ([IMAGES.numpy(), LABELS.numpy()], TypeError, "got a list of 2: ndarray, ndarray"),
    "labels between classes": (
        (IMAGES, LABELS + 0.5),
        ValueError,
        r"must be whole numbers, class indices; got \d\.5\. Round",
    ),
    "complex labels": ((IMAGES, LABELS + 0j), TypeError, r"class indices; got torch.complex64"),
    "integer images": (
        (IMAGES.byte(), LABELS),
        TypeError,
        r"must be floating point; got torch.uint8\. Scale",
    ),
    "a channel per class": (
        (IMAGES, torch.zeros(2, 3, 8, 8, dtype=torch.long)),
        ValueError,
        r"labels must be \(2, 8, 8\) for images of shape \(2, 1, 8, 8\); got \(2, 3, 8, 8\)",
    ),
    "another size": ((IMAGES, LABELS[:, :4]), ValueError, r"got \(2, 4, 8\)"),
    "another batch": ((IMAGES, LABELS[:1]), ValueError, r"got \(1, 8, 8\)"),
    "images without channels": ((IMAGES[:, 0], LABELS), ValueError, r"for images of shape \(2, 8, 8\)"),
    "too large a label": (
        (IMAGES, torch.full_like(LABELS, 3)),
        ValueError,
        r"labels must be in 0 … 2 or ignore_index=-100; got \[3\]\. Map them to class indices",
    ),
    "a negative label": ((IMAGES, torch.full_like(LABELS, -1)), ValueError, r"got \[-1\]"),
    "unscaled images": ((IMAGES * 255, LABELS), ValueError, r"image_range=\(0, 1\); got values from"),
}


@pytest.mark.parametrize(("batch", "error", "message"), BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_a_batch_that_does_not_fit_is_refused(verb, batch, error, message):
    trainer = tiny_trainer()
    before = weights_of(trainer)
    with pytest.raises(error, match=message):
        trainer.fit([batch], epochs=1) if verb == "fit" else trainer.evaluate([batch])
    assert same_weights(before, weights_of(trainer))
    assert trainer.global_step == 0


def test_later_batches_are_checked_too():
    batches = [(IMAGES, LABELS), (IMAGES, torch.full_like(LABELS, 7))]
    trainer = tiny_trainer()
    with pytest.raises(ValueError, match=r"got \[7\]"):
        trainer.fit(batches, epochs=1)
    assert trainer.global_step == 1


def test_labels_of_one_logit_are_zero_and_one():
    trainer = tiny_trainer(tiny_coop(num_classes=1))
    with pytest.raises(ValueError, match=r"labels must be in 0 … 1.*got \[2\]"):
        trainer.fit([(IMAGES, torch.full_like(LABELS, 2))], epochs=1)
    trainer.fit([(IMAGES, LABELS > 0)], epochs=1)  # a boolean mask will do


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"epochs": -3}, "epochs must be at least 1; got -3"),
        ({"max_steps": 0}, "max_steps must be at least 1; got 0"),
        ({}, "fit needs epochs or max_steps; got neither"),
    ],
)
def test_a_fit_that_would_do_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer().fit(squares(), **options)


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_empty_loader_is_refused(wrapped):
    trainer = tiny_trainer() if wrapped else CooperativeTrainer(TinyNet(), num_classes=3, callbacks=[])
    with pytest.raises(ValueError, match="fit needs a loader that yields at least one batch"):
        trainer.fit([], epochs=1)


def test_an_empty_validation_loader_is_refused():
    with pytest.raises(ValueError, match="evaluate needs a loader that yields at least one batch"):
        tiny_trainer().fit(squares(), [], epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "precision must be 'float32', 'bfloat16' or 'float16'; got 'half'"),
        ({"accumulate": 0}, "accumulate must be at least 1 batch per update; got 0"),
        ({"clip_norm": 0.0}, r"clip_norm must be positive; got 0\.0\. Pass None"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(**options)


def test_whole_labels_of_any_type_train_alike():
    losses = []
    for labels in (LABELS, LABELS.float(), LABELS.byte()):
        trainer = tiny_trainer(seed=0)
        torch.manual_seed(0)
        trainer.fit([(IMAGES, labels)], epochs=1)
        losses.append(trainer.history[-1]["loss"])
    assert losses[0] == losses[1] == losses[2]


def test_another_number_of_classes_than_the_model_has_is_refused():
    with pytest.raises(ValueError, match=r"needs num_classes=3, as the CooperativeModel has, or None; got 7"):
        CooperativeTrainer(tiny_trainer().model, num_classes=7)
