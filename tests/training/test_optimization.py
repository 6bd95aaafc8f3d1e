"""Optimizers, schedules, precision and clipping, as a fit uses them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import latentaug.training.optimization
from latentaug.augment.masks import RandomChannelMask
from latentaug.augment.schedule import Schedule
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.training.callbacks import Callback
from latentaug.training.optimization import PerStep, Precision, check_optimizer, is_native
from latentaug.training.trainer import CooperativeTrainer
from tests.support.random_streams import seed_all
from tests.support.tiny_training import (
    At,
    TinyNet,
    headless_coop,
    squares,
    tiny_coop,
    tiny_trainer,
    weights_of,
)


def test_an_optimizer_that_lacks_parameters_is_refused_by_name() -> None:
    coop = tiny_coop()
    optimizer = torch.optim.SGD(coop.model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"every trainable parameter of the CooperativeModel; it lacks \d+: recons.*lambda"
    ):
        CooperativeTrainer(coop, optimizer)


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


def test_a_device_is_given_by_its_name_too() -> None:
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
    for precision in precisions:
        assert is_native(precision, "cpu") is is_native(precision, torch.device("cpu"))
        assert is_native(precision, "cuda")
    with pytest.raises(TypeError, match=r"device must be a torch\.device or its name; got None"):
        is_native("bfloat16", None)  # type: ignore[arg-type]


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


# Optimizers of other kinds --------------------------------------------------------------------------------------------


class SAM(torch.optim.SGD):
    """Needs the loss twice, as sharpness-aware minimisation does."""


class InTwoSteps(torch.optim.SGD):
    def first_step(self) -> None: ...

    def second_step(self) -> None: ...


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> Any:
        return super().step(closure)


class NeedsLoss(torch.optim.SGD):
    def step(self, loss_of: Any) -> Any:
        return super().step(loss_of)


class Ascends(torch.optim.SGD):
    def ascent_step(self) -> None: ...

    def descent_step(self) -> None: ...


CLOSURES = [torch.optim.LBFGS, *(partial(one, lr=0.1) for one in (SAM, InTwoSteps, NeedsClosure, NeedsLoss, Ascends))]


@pytest.mark.parametrize("kind", CLOSURES, ids=["LBFGS", "SAM", "InTwoSteps", "NeedsClosure", "NeedsLoss", "Ascends"])
@pytest.mark.parametrize("instance", [True, False])
def test_optimizers_that_call_the_loss_are_refused_by_name_when_the_trainer_is_built(kind: Any, instance: bool) -> None:
    coop = tiny_coop()
    name = getattr(kind, "func", kind).__name__
    with pytest.raises(ValueError, match=rf"optimizer must step along .*; {name} calls the loss itself, by a closure"):
        tiny_trainer(coop, optimizer=kind(coop.parameters()) if instance else kind)
    if instance:  # also where the model is yet to be wrapped
        with pytest.raises(ValueError, match=f"{name} calls the loss itself"):
            CooperativeTrainer(TinyNet(), kind(coop.parameters()), num_classes=3)


def test_what_another_optimizer_wraps_is_looked_at_too() -> None:
    class Ahead(torch.optim.SGD):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, lr=0.1)
            self.inner = torch.optim.LBFGS(self.param_groups[0]["params"])

    with pytest.raises(ValueError, match="LBFGS calls the loss itself"):
        check_optimizer(Ahead([nn.Parameter(torch.ones(2))]))


def test_parameters_that_are_unfrozen_later_train_or_are_named() -> None:
    coop = headless_coop()
    coop.model.encoder.requires_grad_(False)
    trainer = tiny_trainer(coop)
    trainer.fit(squares(), epochs=1)
    coop.model.encoder.requires_grad_(True)
    with pytest.raises(ValueError, match=r"it lacks 4: model\.encoder\.0\.weight.*add_param_group"):
        trainer.fit(squares(), epochs=2)
    trainer.optimizer.add_param_group({"params": list(coop.model.encoder.parameters())})
    before = coop.model.encoder[0].weight.clone()
    trainer.fit(squares(), epochs=2)
    assert not torch.equal(coop.model.encoder[0].weight, before)
    coop.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the CooperativeModel requires a gradient"):
        tiny_trainer(coop)


def test_a_score_that_is_no_number_is_neither_good_nor_bad(caplog: pytest.LogCaptureFixture) -> None:
    trainer = tiny_trainer(headless_coop(), scheduler=partial(ReduceLROnPlateau, patience=0))
    nothing = [(torch.rand(2, 1, 8, 8), torch.full((2, 8, 8), -100))]
    trainer.fit(squares(), nothing, epochs=2)
    assert len({row["lr"] for row in trainer.history}) == 1
    assert "refined_iou, which is monitored, is no number" in caplog.text
    assert trainer.best is None


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam]
)
def test_optimizers_whose_closure_may_be_left_out_are_taken(kind: Any) -> None:
    tiny_trainer(optimizer=partial(kind, lr=1e-3)).fit(squares(), epochs=1)


class ScheduleFree(torch.optim.SGD):
    """Has two sets of weights, and refuses to step along the wrong one, as schedule-free optimizers do."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.calls: list[str] = []
        self.param_groups[0]["train_mode"] = False

    @torch.no_grad()
    def switch(self, mode: bool) -> None:
        self.calls.append("train" if mode else "eval")
        if self.param_groups[0]["train_mode"] != mode:
            self.param_groups[0]["train_mode"] = mode
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(0.01 if mode else -0.01)

    def train(self) -> None:
        self.switch(True)

    def eval(self) -> None:
        self.switch(False)

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["train_mode"]
        return super().step(closure)


def test_a_schedule_free_optimizer_steps_in_one_set_of_weights_and_is_evaluated_and_saved_in_the_other(
    tmp_path: Path,
) -> None:
    seen: list[bool] = []

    def mode(trainer: Any) -> bool:
        value: bool = trainer.optimizer.param_groups[0]["train_mode"]
        return value

    class Look(Callback):
        def on_step(self, trainer: Any, losses: Any) -> None:
            seen.append(mode(trainer))
            trainer.save(tmp_path / "mid.pt")
            assert mode(trainer)

    class Validation:
        def __iter__(self) -> Any:
            assert not mode(trainer)
            return iter(squares())

    trainer = tiny_trainer(optimizer=partial(ScheduleFree, lr=0.01), folder=tmp_path / "run", callbacks=[Look()])
    trainer.fit(squares(), Validation(), epochs=2)
    assert seen == [True] * 6
    assert not mode(trainer)  # so that the model predicts with the right ones
    for path in ("mid.pt", "run/last.pt"):
        state = torch.load(tmp_path / path, weights_only=True)
        assert not state["optimization"]["optimizer"]["param_groups"][0]["train_mode"]
        for name, parameter in trainer.model.named_parameters():
            torch.testing.assert_close(state["model"][name], parameter.detach(), atol=1e-5, rtol=1e-5)
    resumed = tiny_trainer(optimizer=partial(ScheduleFree, lr=0.01))
    resumed.resume(tmp_path / "run/last.pt")
    resumed.fit(squares(), epochs=3)
    assert resumed.epoch == 3


def test_it_is_evaluated_in_the_right_set_after_trouble_too() -> None:
    def fail(trainer: Any) -> None:
        raise KeyError("mine")

    trainer = tiny_trainer(optimizer=partial(ScheduleFree, lr=0.01), callbacks=[At(2, fail)])
    with pytest.raises(KeyError, match="mine"):
        trainer.fit(squares(), epochs=1)
    assert not trainer.optimizer.param_groups[0]["train_mode"]


def test_the_rate_of_every_group_is_logged() -> None:
    def in_groups(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "lr": 0.2}], lr=0.3)

    trainer = tiny_trainer(optimizer=in_groups, scheduler=lambda optimizer: LambdaLR(optimizer, lambda n: 0.5**n))
    trainer.fit(squares(), epochs=2)
    assert [(row["lr"], row["lr_1"]) for row in trainer.history] == [(0.1, 0.2), (0.05, 0.1)]


# Plateaus -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_a_plateau_takes_a_higher_score_for_better(mode: Any, threshold_mode: Any) -> None:
    trainer = tiny_trainer(
        scheduler=partial(ReduceLROnPlateau, mode=mode, threshold_mode=threshold_mode, patience=1, factor=0.5)
    )
    rates = []
    for score in (0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.5):
        trainer._optimization.end_epoch(score)
        rates.append(trainer.optimizer.param_groups[0]["lr"] / 1e-4)
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5]


def test_a_plateau_cannot_be_watched_with_every_update() -> None:
    with pytest.raises(ValueError, match=r"PerStep needs a scheduler that counts updates; got ReduceLROnPlateau"):
        tiny_trainer(scheduler=PerStep(ReduceLROnPlateau))


def test_a_plateau_of_an_older_checkpoint_is_turned_round(tmp_path: Path) -> None:
    first = tiny_trainer(scheduler=ReduceLROnPlateau)
    first.fit(squares(), squares(), epochs=1)
    first.save(tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    state["optimization"]["scheduler"] |= {"mode": "min", "mode_worse": float("inf"), "best": 0.01}
    torch.save(state, tmp_path / "a.pt")
    second = tiny_trainer(scheduler=ReduceLROnPlateau)
    second.resume(tmp_path / "a.pt")
    assert isinstance(second.scheduler, ReduceLROnPlateau)
    assert (second.scheduler.mode, second.scheduler.best) == ("max", -float("inf"))


# Averages of weights --------------------------------------------------------------------------------------------------


class Average(Callback):
    def __init__(self, averaged: AveragedModel) -> None:
        self.averaged = averaged

    def on_step(self, trainer: Any, losses: Any) -> None:
        self.averaged.update_parameters(trainer.model)


def test_a_moving_average_of_weights_and_statistics_follows_training() -> None:
    trainer = tiny_trainer(optimizer=partial(torch.optim.Adam, lr=0.01))
    averaged = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    expected: dict[str, Tensor] = {}

    class ByHand(Callback):
        def on_step(self, trainer: Any, losses: Any) -> None:
            for name, value in weights_of(trainer).items():
                whole = not value.is_floating_point() or name not in expected
                expected[name] = value if whole else 0.9 * expected[name] + 0.1 * value

    trainer.callbacks = [Average(averaged), ByHand()]
    trainer.fit(squares(), squares(), epochs=2)
    for name, value in averaged.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}")
    images = next(iter(squares()))[0]
    assert averaged.module.predict(images).shape == (2, 8, 8)


def test_statistics_of_averaged_weights_are_computed_anew_on_the_network_within() -> None:
    trainer = tiny_trainer(optimizer=partial(torch.optim.Adam, lr=0.01))
    averaged = AveragedModel(trainer.model)
    trainer.callbacks = [Average(averaged)]
    trainer.fit(squares(), epochs=2)
    network, batches = averaged.module.model, list(squares())
    update_bn(batches, network)
    codes = torch.cat([network.encoder[0](images) for images, _ in batches])
    torch.testing.assert_close(network.encoder[1].running_mean, codes.mean((0, 2, 3)))
    assert averaged.module.predict(batches[0][0], refine=0).shape == (2, 8, 8)
