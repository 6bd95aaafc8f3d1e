"""What is not finite never reaches weights, buffers and checkpoints: it is skipped, named, and ends a training."""

from __future__ import annotations

import copy
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latentaug.training.finite
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward
from latentaug.training.finite import FiniteGuard, KeptBuffers, NotFiniteError, gradients_finite, weights_finite
from latentaug.training.trainer import CooperativeTrainer
from tests.support.random_streams import seed_all
from tests.support.synchronisation import NoSync
from tests.support.tiny_training import same_weights, tiny_coop, tiny_trainer, update, weights_of

BATCHES = [(torch.rand(2, 1, 8, 8), torch.randint(3, (2, 8, 8))) for _ in range(4)]
LOST = [math.nan, math.inf, -math.inf]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is on the CPU pass for something on a device, which one would have to wait for."""
    monkeypatch.setattr(latentaug.training.finite, "is_readable", lambda tensor: False)


def spoilt(batches: list[Any], number: int, value: float, part: int = 0) -> list[Any]:
    """Return the batches, with one entry of one of them not finite."""
    batches = [[images.clone(), labels.clone()] for images, labels in batches]
    batches[number][part] = batches[number][part].float()
    batches[number][part].view(-1)[3] = value
    return batches


def trained(batches: Any, epochs: int = 2, **options: Any) -> CooperativeTrainer:
    trainer = tiny_trainer(**{"optimizer": partial(torch.optim.Adam, lr=0.01)} | options)
    seed_all(5)
    trainer.fit(batches, epochs=epochs)
    return trainer


def messages(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.message for record in caplog.records if text in record.message]


# Skipped, and as if they had never been drawn -------------------------------------------------------------------------


@pytest.mark.parametrize("value", LOST)
@pytest.mark.parametrize("part", [0, 1], ids=["images", "labels"])
@pytest.mark.parametrize("number", [0, 2])
def test_training_is_as_if_such_a_batch_had_never_been_drawn(
    number: int, part: int, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained([batch for index, batch in enumerate(BATCHES) if index != number])
    found = trained(spoilt(BATCHES, number, value, part))
    assert same_weights(weights_of(found), weights_of(expected))
    assert found.global_step == expected.global_step == 6
    for one, other in zip(found.history, expected.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    name = ("images", "labels")[part]
    first, second = messages(caplog, "Skipped batch")
    assert first == (f"Skipped batch {number} (counted from 0) of epoch 1: not finite were {name}. Skipped so far: 1.")
    assert "of epoch 2" in second


@pytest.mark.parametrize("accumulate", [2, 3, 4])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_the_others_of_a_group_are_accumulated(accumulate: int, number: int) -> None:
    loss = LossAt({number}, "loss")
    found = trained(BATCHES, epochs=1, accumulate=accumulate, step=loss, optimizer=partial(torch.optim.SGD, lr=0.1))
    model = tiny_coop()
    generator = torch.Generator().manual_seed(1)
    seed_all(5)
    for start in range(0, 4, accumulate):
        gradients = []
        for index, (images, labels) in enumerate(BATCHES[start : start + accumulate], start):
            model.zero_grad()
            buffers = copy.deepcopy(dict(model.named_buffers()))
            cooperative_backward(model, images, labels, generator=generator)
            if index != number:
                gradients.append([parameter.grad for parameter in model.parameters()])
            else:
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])
        with torch.no_grad():
            for parameter, *parts in zip(model.parameters(), *gradients, strict=True) if gradients else ():
                parameter -= 0.1 * torch.stack(parts).mean(0)
    for name, value in weights_of(found).items():
        torch.testing.assert_close(value, model.state_dict()[name])


class LossAt:
    """A step that spoils its loss, or its gradient, in some batches."""

    def __init__(self, numbers: set[int], what: str, value: float = math.nan) -> None:
        self.numbers, self.what, self.value, self.calls = numbers, what, value, 0

    def __call__(self, model: Any, images: Tensor, labels: Tensor, **options: Any) -> CooperativeOutput:
        output = cooperative_backward(model, images, labels, **options)
        lost = self.calls in self.numbers
        self.calls += 1
        if lost and self.what == "gradient":
            next(model.parameters()).grad.view(-1)[0] = self.value
        if lost and self.what == "loss":
            output = output._replace(losses={**output.losses, "segmentation": torch.tensor(self.value)})
        return output


@pytest.mark.parametrize("value", LOST)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_losses_and_gradients_are_seen_and_named(what: str, value: float, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trained(BATCHES, epochs=1, step=LossAt({1}, what, value))
    assert trainer.global_step == 3
    assert weights_finite(trainer.model)
    assert trainer.history[0]["loss"] < math.inf
    (message,) = messages(caplog, "Skipped batch 1")
    assert f"not finite were {'segmentation' if what == 'loss' else 'gradient'}." in message


def test_running_statistics_are_those_of_before() -> None:
    class Overflowing(LossAt):
        def __call__(self, model: Any, images: Tensor, labels: Tensor, **options: Any) -> CooperativeOutput:
            return super().__call__(model, images * (1e30 if self.calls in self.numbers else 1), labels, **options)

    trainer = tiny_trainer(tiny_coop(image_range=None), step=Overflowing({0}, "nothing"))
    before = weights_of(trainer)
    trainer.fit(BATCHES[:1], epochs=1)
    assert same_weights(weights_of(trainer), before)
    assert trainer.global_step == 0
    assert math.isnan(trainer.history[0]["loss"])


def test_a_best_epoch_is_never_one_of_lost_weights(tmp_path: Path) -> None:
    trainer = tiny_trainer(folder=tmp_path)
    trainer.fit(BATCHES, BATCHES, epochs=1)
    files = {path: path.read_bytes() for path in (tmp_path / "last.pt", tmp_path / "best.pt")}
    with torch.no_grad():
        next(trainer.model.parameters()).view(-1)[0] = math.nan
    trainer._keep_best(2, {"val_refined_iou": 2.0}, "refined_iou")
    trainer._save_last()
    assert trainer.best.epoch == 1
    assert all(path.read_bytes() == content for path, content in files.items())


# Stopping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_skipped", [1, 3])
def test_too_many_in_a_row_end_training_with_the_last_finite_weights(tmp_path: Path, max_skipped: int) -> None:
    step = LossAt(set(range(5, 100)), "loss")
    trainer = tiny_trainer(step=step, folder=tmp_path, max_skipped=max_skipped)
    expected = tiny_trainer(max_skipped=max_skipped)
    seed_all(5)
    expected.fit(BATCHES, max_steps=5, epochs=9)
    seed_all(5)
    message = rf"Training stopped: {max_skipped} batches in a row .*segmentation.* weights are those before"
    with pytest.raises(NotFiniteError, match=message):
        trainer.fit(BATCHES, epochs=9)
    assert step.calls == 5 + max_skipped
    assert same_weights(weights_of(trainer), weights_of(expected))
    again = tiny_trainer()
    again.resume(tmp_path / "last.pt")
    assert (again.global_step, again.epoch) == (5, 1)
    again.fit(BATCHES, epochs=2)


def test_finite_batches_in_between_count_anew() -> None:
    trainer = trained(BATCHES, epochs=4, step=LossAt({0, 1, 3, 4, 6, 7}, "loss"), max_skipped=3)
    assert trainer.global_step == 10


@pytest.mark.parametrize("max_skipped", [0, -1, 1.5, True, "10", math.nan])
def test_limits_that_are_no_number_of_batches_are_refused(max_skipped: Any) -> None:
    with pytest.raises(ValueError, match="max_skipped must be a whole number of batches, 1 or more; got"):
        tiny_trainer(max_skipped=max_skipped)


def test_many_skips_are_told_of_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    guard = FiniteGuard(1000)
    for number in range(100):
        guard.refuse(1, number, guard.lost(torch.full((1,), math.nan), torch.zeros(1)))
    assert len(messages(caplog, "Skipped batch")) == 3 + 5  # 1, 2, 3, 4, 8, 16, 32, 64
    assert guard.skipped == 100


# Validation -----------------------------------------------------------------------------------------------------------


def test_batches_of_a_validation_that_are_lost_are_named(caplog: pytest.LogCaptureFixture) -> None:
    trainer = tiny_trainer(tiny_coop(image_range=None))
    with caplog.at_level(logging.WARNING):
        assert math.isnan(trainer.evaluate(spoilt(BATCHES, 2, math.nan))["loss"])
    (message,) = messages(caplog, "evaluate")
    assert "the loss of 1 of 4 batches is infinite or not a number, counted from 0: 2." in message


# On a device, which is not waited for ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_device_decides_by_itself(
    what: str, accumulate: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"accumulate": accumulate, "optimizer": partial(torch.optim.SGD, lr=0.1), "epochs": 1}
    found = trained(BATCHES, step=LossAt({1}, what), **options)
    monkeypatch.setattr(latentaug.training.finite, "is_readable", lambda tensor: True)
    expected = trained(BATCHES, step=LossAt({1}, what), **options)
    for name, value in weights_of(found).items():
        torch.testing.assert_close(value, weights_of(expected)[name])
    assert found.history[0]["loss"] == pytest.approx(expected.history[0]["loss"])
    assert messages(caplog, "Skipped batch 1")


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_device_is_not_waited_for(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def quiet_step(model: Any, images: Tensor, labels: Tensor, **options: Any) -> CooperativeOutput:
        loss = nn.functional.cross_entropy(model.model(images), labels)
        loss.backward()
        return CooperativeOutput(loss, {"segmentation": loss}, images, images, None, None)

    monkeypatch.setattr(latentaug.training.wrapping, "check_batch", lambda images, labels, *_, **__: labels)
    trainer = tiny_trainer(step=quiet_step, accumulate=accumulate, optimizer=partial(torch.optim.SGD, lr=0.1))
    before = weights_of(trainer)
    with NoSync():
        update(trainer, spoilt(BATCHES, 0, math.nan)[:accumulate])
    assert weights_finite(trainer.model)
    assert same_weights(before, weights_of(trainer)) == (accumulate == 1)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.named_buffers()) == (accumulate == 1)


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [*LOST, 6e4])
def test_gradients_are_finite_exactly_if_each_number_is(dtype: torch.dtype, value: float) -> None:
    weights = [nn.Parameter(torch.zeros(3, dtype=dtype)) for _ in range(3)]
    for weight in weights[:2]:
        weight.grad = torch.ones_like(weight)
    weights[1].grad[1] = value
    assert bool(gradients_finite(weights, torch.device("cpu"))) == math.isfinite(value)


def test_large_gradients_do_not_overflow_into_lost_ones() -> None:
    weight = nn.Parameter(torch.zeros(1000))
    weight.grad = torch.full((1000,), 3e38)
    assert gradients_finite([weight], torch.device("cpu"))


@pytest.mark.parametrize("finite", [None, True, False])
def test_buffers_are_put_back_of_every_type_and_also_if_they_were_replaced(finite: bool | None) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3))
    model.register_buffer("table", torch.arange(4))
    before = copy.deepcopy(dict(model.named_buffers()))
    kept = KeptBuffers(model)
    for buffer in model.buffers():
        buffer.add_(1)
    model.table = model.table + 1
    after = copy.deepcopy(dict(model.named_buffers()))
    kept.put_back(None if finite is None else torch.tensor(finite))
    expected = after if finite else before
    assert all(torch.equal(value, expected[name]) for name, value in model.named_buffers())


def test_buffers_of_overlapping_memory_are_put_back() -> None:
    model = nn.Module()
    model.register_buffer("scale", torch.zeros(1, 3).expand(4, 3))
    kept = KeptBuffers(model)
    model.scale[0] += 1
    kept.put_back(None)
    assert torch.equal(model.scale, torch.zeros(4, 3))
