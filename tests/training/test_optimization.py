"""Optimizers, schedules, precision and clipping, as a fit uses them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

import latentaug.training.optimization
from latentaug.augment.masks import RandomChannelMask
from latentaug.augment.schedule import Schedule
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.training.optimization import PerStep, Precision
from latentaug.training.trainer import CooperativeTrainer
from tests.support.random_streams import seed_all
from tests.support.tiny_training import (
    TinyNet,
    squares,
    tiny_coop,
    tiny_trainer,
    weights_of,
)


def test_an_optimizer_that_lacks_parameters_is_refused_by_name() -> None:
    net = TinyNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"every trainable parameter of the CooperativeModel; it lacks \d+: recons.*lambda"
    ):
        CooperativeTrainer(net, optimizer, num_classes=3, example=torch.rand(2, 1, 8, 8))


def test_an_optimizer_that_holds_all_trainable_parameters_is_taken() -> None:
    coop = tiny_coop()
    coop.model.encoder.requires_grad_(False)
    before = coop.model.encoder[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in coop.parameters() if p.requires_grad], lr=0.1)
    trainer = tiny_trainer(coop, optimizer=optimizer)
    assert trainer.optimizer is optimizer
    trainer.fit(squares(), epochs=1)
    assert torch.equal(coop.model.encoder[0].weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be an Optimizer or a callable.*got str"),
        ({"optimizer": lambda parameters: None}, "optimizer must be an Optimizer or a callable.*got NoneType"),
        ({"scheduler": "cosine"}, "scheduler must be an LRScheduler or a callable.*got str"),
        ({"scheduler": lambda optimizer: 3}, "scheduler must be an LRScheduler or a callable.*got int"),
    ],
)
def test_other_things_than_optimizers_and_schedulers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny_trainer(**options)


def test_a_scheduler_on_another_optimizer_is_refused() -> None:
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ValueError, match="scheduler must drive the trainer's own optimizer"):
        tiny_trainer(scheduler=LambdaLR(other, lambda step: 1.0))


@pytest.mark.parametrize(("per_step", "expected"), [(False, [1e-4, 0.5e-4]), (True, [0.125e-4, 0.015625e-4])])
def test_schedulers_advance_per_epoch_or_per_step(per_step: bool, expected: list[float]) -> None:
    def halve(optimizer: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda count: 0.5**count)

    trainer = tiny_trainer(scheduler=PerStep(halve) if per_step else halve)
    assert isinstance(trainer.scheduler, LambdaLR)
    trainer.fit(squares(), epochs=2)
    assert [row["lr"] for row in trainer.history] == pytest.approx(expected)


def test_schedules_of_transforms_advance_with_every_iteration_and_go_on_after_a_resume(tmp_path: Path) -> None:
    def trainer() -> CooperativeTrainer:
        return tiny_trainer(tiny_coop(augment=RandomChannelMask(p=Schedule(0.0, 0.6, iterations=6))))

    def iteration(one: CooperativeTrainer) -> int:
        return one.model.image_transform.p.iteration

    first = trainer()
    first.fit(squares(), epochs=1)
    assert iteration(first) == 3
    first.save(tmp_path / "half.pt")
    second = trainer()
    second.resume(tmp_path / "half.pt")
    assert iteration(second) == 3
    second.fit(squares(), epochs=2)
    assert iteration(second) == 6
    assert second.model.image_transform.p.value == 0.6


def test_a_scheduler_that_watches_a_score_sees_the_monitored_one() -> None:
    seen = []

    class Watch(ReduceLROnPlateau):
        def step(self, metrics: Any, *args: Any) -> None:
            seen.append(float(metrics))
            super().step(metrics, *args)

    trainer = tiny_trainer(scheduler=Watch)
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs a score to watch; got no val_loader"):
        trainer.fit(squares(), epochs=2)
    trainer.fit(squares(), squares(), epochs=2, monitor="dice")
    assert seen == [row["val_dice"] for row in trainer.history]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_trains_every_parameter(precision: Precision) -> None:
    seen = []

    def step(model: Any, images: Tensor, labels: Tensor, **options: Any) -> CooperativeOutput:
        output = cooperative_backward(model, images, labels, **options)
        seen.append(output.logits.dtype)
        return output

    trainer = tiny_trainer(precision=precision, step=step, optimizer=partial(torch.optim.Adam, lr=0.01))
    before = weights_of(trainer)
    trainer.fit(squares(), squares(), epochs=3)
    assert set(seen) == {getattr(torch, precision)}
    after = dict(trainer.model.named_parameters())
    assert [name for name, value in after.items() if torch.equal(before[name], value)] == []
    assert all(parameter.dtype == torch.float32 for parameter in after.values())
    assert trainer.predict(next(iter(squares()))[0]).shape == (2, 8, 8)


def test_half_precision_agrees_with_full_precision() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = tiny_trainer(precision=precision, step=standard_backward)
        seed_all(5)
        trainer.fit(squares(), epochs=1)
        losses[precision] = trainer.history[0]["loss"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


def test_clipping_bounds_the_step() -> None:
    def longest_step(clip_norm: float | None) -> float:
        trainer = tiny_trainer(clip_norm=clip_norm, optimizer=partial(torch.optim.SGD, lr=1.0))
        before = dict(weights_of(trainer))
        trainer.fit(squares(), max_steps=1)
        return float(
            torch.stack([(p.detach() - before[name]).norm() for name, p in trainer.model.named_parameters()]).norm()
        )

    assert longest_step(None) > 0.2
    assert longest_step(0.1) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("native", [True, False])
def test_an_emulated_precision_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, native: bool
) -> None:
    latentaug.training.optimization._tell_of_emulation.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    for precision in ("float32", "bfloat16", "bfloat16"):
        tiny_trainer(precision=precision)
    messages = [record.message for record in caplog.records if "emulated" in record.message]
    assert len(messages) == (not native)
    assert all("in bfloat16" in message and "precision='float32'" in message for message in messages)
