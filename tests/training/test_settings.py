"""What a resumed training asks for otherwise than the checkpoint: named, or applied, to the number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from latentaug.training.optimization import PerStep
from latentaug.training.settings import overrides
from latentaug.training.trainer import CooperativeTrainer
from tests.support.tiny_training import headless_coop, squares, tiny_trainer

adam = partial(torch.optim.Adam, lr=1e-3)


def trainer(optimizer: Any = None, scheduler: Any = None) -> CooperativeTrainer:
    return tiny_trainer(headless_coop(), optimizer=adam if optimizer is None else optimizer, scheduler=scheduler)


def saved(path: Path, optimizer: Any = None, scheduler: Any = None, epochs: int = 2) -> Path:
    one = trainer(optimizer, scheduler)
    one.fit(squares(), squares(), epochs=epochs)
    one.save(path / "a.pt")
    return path / "a.pt"


def lr(one: CooperativeTrainer) -> float:
    return float(one.optimizer.param_groups[0]["lr"])


def rates(one: CooperativeTrainer, epochs: int) -> list[float]:
    one.fit(squares(), squares(), epochs=epochs)
    return [row["lr"] for row in one.history]


# Named ----------------------------------------------------------------------------------------------------------------

IGNORED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rate": ({}, {"optimizer": partial(adam, lr=3e-4)}, r"optimizer\.lr \(0\.001 in the checkpoint, 0\.0003 in this"),
    "decay": (
        {},
        {"optimizer": partial(adam, weight_decay=0.1)},
        r"optimizer\.weight_decay \(0 in .*, 0\.1 in this call",
    ),
    "betas": ({}, {"optimizer": partial(adam, betas=(0.5, 0.9))}, r"optimizer\.betas \(\(0\.9, 0\.999\) in"),
    "cosine": (
        {"scheduler": partial(CosineAnnealingLR, T_max=10)},
        {"scheduler": partial(CosineAnnealingLR, T_max=20)},
        r"scheduler\.T_max \(10 in the checkpoint, 20 in this call\)",
    ),
    "steps": (
        {"scheduler": partial(StepLR, step_size=5)},
        {"scheduler": partial(StepLR, step_size=5, gamma=0.5)},
        r"scheduler\.gamma \(0\.1 in the checkpoint, 0\.5 in this call\)",
    ),
    "plateau": (
        {"scheduler": ReduceLROnPlateau},
        {"scheduler": partial(ReduceLROnPlateau, patience=3)},
        r"scheduler\.patience \(10 in the checkpoint, 3 in this call\)",
    ),
    "per update": (
        {"scheduler": PerStep(partial(LinearLR, total_iters=100))},
        {"scheduler": PerStep(partial(LinearLR, total_iters=200))},
        r"scheduler\.total_iters \(100 in the checkpoint, 200 in this call\)",
    ),
    "within": (
        {"scheduler": lambda o: ChainedScheduler([StepLR(o, 5), ExponentialLR(o, 0.9)])},
        {"scheduler": lambda o: ChainedScheduler([StepLR(o, 5), ExponentialLR(o, 0.8)])},
        r"scheduler\._schedulers .*0\.9.*0\.8",
    ),
}


@pytest.mark.parametrize("name", IGNORED)
def test_settings_that_are_not_taken_are_named(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    then, now, message = IGNORED[name]
    path = saved(tmp_path, **then)
    caplog.clear()
    one = trainer(**now)
    one.resume(path)
    (record,) = (record for record in caplog.records if "asks for other settings" in record.message)
    assert record.levelname == "WARNING"
    assert re.search(message, record.message), record.message
    assert "override" in record.message


class Table:
    """A schedule by a table, which is kept as an array."""

    def __init__(self) -> None:
        self.rates = np.linspace(1.0, 0.5, 10)

    def __call__(self, epoch: int) -> float:
        return float(self.rates[epoch])


@pytest.mark.parametrize(
    "scheduler", [None, partial(CosineAnnealingLR, T_max=10), ReduceLROnPlateau, lambda o: LambdaLR(o, Table())]
)
def test_equal_settings_are_not_named(scheduler: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path, partial(adam, lr=3e-4), scheduler)
    trainer(partial(adam, lr=3e-4), scheduler).resume(path)
    assert "other settings" not in caplog.text


def test_what_is_taken_from_where_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path)
    with caplog.at_level("INFO"):
        trainer(partial(adam, lr=0.5)).resume(path, override=["optimizer.lr"])
    assert "From the file: weights, optimizer" in caplog.text
    assert "From this call: the loss" in caplog.text
    assert "taken from this call: optimizer.lr (0.001 in the checkpoint, 0.5 in this call)." in caplog.text
    assert "other settings" not in caplog.text


def test_groups_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def in_groups(second: float) -> Any:
        return lambda weights: adam([{"params": weights[:2]}, {"params": weights[2:], "lr": second}])

    path = saved(tmp_path, in_groups(0.01))
    one = trainer(in_groups(0.02))
    one.resume(path)
    assert "optimizer.lr of group 1 (0.01 in the checkpoint, 0.02 in this call)" in caplog.text
    assert "group 0" not in caplog.text
    one = trainer(in_groups(0.02))
    one.resume(path, override=["optimizer.lr"])
    assert [group["lr"] for group in one.optimizer.param_groups] == [0.001, 0.02]


# Applied --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", [["optimizer"], ("optimizer.lr", "optimizer.weight_decay"), {"optimizer"}])
def test_options_of_the_optimizer_are_taken_and_its_state_stays(override: Any, tmp_path: Path) -> None:
    path = saved(tmp_path)
    one = trainer(partial(adam, lr=0.02, weight_decay=0.5))
    one.resume(path, override=override)
    assert (lr(one), one.optimizer.param_groups[0]["weight_decay"]) == (0.02, 0.5)
    assert all(int(state["step"]) == 6 for state in one.optimizer.state.values())


def test_only_the_option_named_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path)
    one = trainer(partial(adam, lr=0.02, weight_decay=0.5))
    one.resume(path, override="optimizer.weight_decay")
    assert (lr(one), one.optimizer.param_groups[0]["weight_decay"]) == (0.001, 0.5)


SCHEDULES: dict[str, Callable[[int], Any]] = {
    "cosine": lambda n: partial(CosineAnnealingLR, T_max=2 * n, eta_min=1e-5),
    "steps": lambda n: partial(StepLR, step_size=n),
    "exponential": lambda n: partial(ExponentialLR, gamma=1 - 1 / n),
    "per update": lambda n: PerStep(partial(LinearLR, total_iters=3 * n)),
    "one cycle": lambda n: PerStep(partial(OneCycleLR, max_lr=0.01, total_steps=30 * n)),
    "in turn": lambda n: (
        lambda o: SequentialLR(o, [LinearLR(o, total_iters=1), CosineAnnealingLR(o, T_max=n)], milestones=[1])
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("rate", [1e-3, 5e-3])
def test_another_schedule_goes_on_as_if_it_had_been_there_from_the_start(
    name: str, rate: float, tmp_path: Path
) -> None:
    path = saved(tmp_path, scheduler=SCHEDULES[name](3))
    one = trainer(partial(adam, lr=rate), SCHEDULES[name](5))
    one.resume(path, override=["scheduler", "optimizer"])
    found = rates(one, epochs=5)[2:]
    expected = rates(trainer(partial(adam, lr=rate), SCHEDULES[name](5)), epochs=5)[2:]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["cosine", "steps", "in turn"])
def test_another_schedule_starts_from_the_rate_of_the_file_unless_told_otherwise(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, scheduler=SCHEDULES[name](3))
    one = (
        trainer(partial(adam, lr=2e-3), partial(StepLR, step_size=1))
        if name == "steps"
        else trainer(partial(adam, lr=2e-3), SCHEDULES[name](5))
    )
    one.resume(path, override=["scheduler"])
    expected = trainer(None, partial(StepLR, step_size=1) if name == "steps" else SCHEDULES[name](5))
    expected.fit(squares(), epochs=2)
    assert lr(one) == pytest.approx(lr(expected), rel=1e-2 if name == "cosine" else 1e-9)


@pytest.mark.parametrize("scheduler", [partial(StepLR, step_size=2), partial(ExponentialLR, gamma=0.9)])
def test_another_rate_under_the_same_schedule_scales_it(scheduler: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, scheduler=scheduler, epochs=3)
    one = trainer(partial(adam, lr=4e-3), scheduler)
    one.resume(path, override=["optimizer.lr"])
    found = rates(one, epochs=6)[3:]
    expected = rates(trainer(partial(adam, lr=4e-3), scheduler), epochs=6)[3:]
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_plateau_is_taken_with_its_settings_and_keeps_what_it_has_seen(tmp_path: Path) -> None:
    path = saved(tmp_path, scheduler=partial(ReduceLROnPlateau, mode="max"))
    one = trainer(scheduler=partial(ReduceLROnPlateau, mode="max", patience=3, factor=0.5))
    one.resume(path, override=["scheduler"])
    assert isinstance(one.scheduler, ReduceLROnPlateau)
    assert (one.scheduler.patience, one.scheduler.factor) == (3, 0.5)
    assert one.scheduler.best > -math.inf
    assert one.scheduler.last_epoch == 2


def test_a_trainer_that_has_fitted_takes_a_schedule_as_a_fresh_one_does(tmp_path: Path) -> None:
    path = saved(tmp_path, scheduler=partial(CosineAnnealingLR, T_max=6))
    one = trainer(scheduler=partial(CosineAnnealingLR, T_max=10))
    one.fit(squares(), epochs=3)
    one.resume(path, override=["scheduler"])
    expected = trainer(scheduler=partial(CosineAnnealingLR, T_max=10))
    expected.fit(squares(), epochs=2)
    assert lr(one) == pytest.approx(lr(expected), rel=1e-12)


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", [["schedule"], ["optimizer.learning_rate"], ["loss"], ["scheduler.T_max"]])
def test_settings_that_there_are_not_are_refused_with_those_that_there_are(override: Any, tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(
        ValueError, match=r"override must name settings, of optimizer, scheduler, optimizer\.lr, .*; got"
    ):
        trainer().resume(path, override=override)


@pytest.mark.parametrize("override", [None, 3, [3], True])
def test_what_is_no_list_of_names_is_refused(override: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="override must be a list of names; got"):
        trainer().resume(tmp_path / "a.pt", override=override)


def test_a_schedule_that_cannot_be_where_training_is_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, scheduler=PerStep(partial(OneCycleLR, max_lr=0.01, total_steps=100)))
    one = trainer(scheduler=PerStep(partial(OneCycleLR, max_lr=0.01, total_steps=4)))
    before = lr(one)
    with pytest.raises(ValueError, match=r"a\.pt can't be resumed from.*Tried to step"):
        one.resume(path, override=["scheduler"])
    assert (lr(one), one.epoch) == (before, 0)


def test_an_option_is_part_of_its_kind() -> None:
    assert overrides(["optimizer"], "optimizer.lr")
    assert not overrides(["optimizer.lr"], "optimizer")
    assert not overrides(["scheduler"], "optimizer.lr")
