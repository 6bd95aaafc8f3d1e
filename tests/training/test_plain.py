"""States come back as they were, or are refused where they are written."""

from __future__ import annotations

import collections
import enum
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from latentaug.training.plain import NotPlainError, plain, restored, without_code
from latentaug.training.trainer import CooperativeTrainer
from tests.support.tiny_training import headless_coop, same_weights, squares, tiny_trainer, weights_of


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(3), 3),
        (np.bool_(True), True),
        ({"a": [np.float64(2.0), (np.int8(1), None)]}, {"a": [2.0, (1, None)]}),
        ({np.int64(1): "one"}, {1: "one"}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.Counter({2: np.int64(1)}), collections.Counter({2: 1})),
    ],
    ids=repr,
)
def test_numbers_of_numpy_become_pythons(given: Any, expected: Any) -> None:
    made = plain(given, "state")
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize("array", [np.linspace(0, 1, 5), np.arange(6).reshape(2, 3), np.array([True, False])], ids=str)
def test_arrays_come_back_as_arrays(array: Any) -> None:
    found = restored(plain({"table": [array]}, "state"))["table"][0]
    assert isinstance(found, np.ndarray)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_the_versions_that_a_model_keeps_with_its_weights_stay() -> None:
    weights = torch.nn.BatchNorm2d(2).state_dict()
    assert restored(plain(weights, "model"))._metadata == weights._metadata


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Colour.RED,
        Path("x"),
        lambda: None,
        np.array(["a"]),
        collections.deque([1]),
        collections.namedtuple("Pair", "a b")(1, 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_be_read_back_is_refused_by_where_it_is(value: Any) -> None:
    with pytest.raises(
        NotPlainError, match=r"scheduler\['table'\]\[1\] can't be kept in a checkpoint: it holds an? \w+"
    ):
        plain({"table": [1, value]}, "scheduler")


def test_code_is_left_out_at_any_depth() -> None:
    state = collections.OrderedDict(a=1, f=math.cos, inner=[{"g": lambda: 1, "b": 2}, None])
    assert without_code(state) == {"a": 1, "inner": [{"b": 2}, None]}


# In a training --------------------------------------------------------------------------------------------------------


class Table(lr_scheduler.LRScheduler):
    """A schedule that is read off an array."""

    def __init__(self, optimizer: Any) -> None:
        self.table = np.linspace(1, 0.1, 10) ** 2
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [base * self.table[self.last_epoch] for base in self.base_lrs]


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5 * (1 + np.cos(np.pi * epoch / 10))),
    "multiplied": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: np.float64(0.9)),
    "numbers": lambda o: lr_scheduler.StepLR(o, np.int64(1), gamma=np.float64(0.5)),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, np.array([1, 2]), gamma=np.float32(0.5)),
    "table": Table,
    "in turn": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, total_iters=np.int64(2)), lr_scheduler.ExponentialLR(o, np.float64(0.9))],
        [np.int64(2)],
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, np.float64(0.9)), lr_scheduler.LambdaLR(o, lambda epoch: np.cos(epoch / 10))]
    ),
    "cyclic": lambda o: lr_scheduler.CyclicLR(
        o, np.float64(1e-4), 1e-3, step_size_up=2, cycle_momentum=False, scale_fn=lambda x: np.float64(0.9) ** x
    ),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(
        o, np.float64(1e-3), total_steps=10, final_div_factor=np.float64(1e4)
    ),
    "averaging": lambda o: swa_utils.SWALR(o, swa_lr=np.float64(1e-3), anneal_epochs=3),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_read_back_and_goes_on(name: str, tmp_path: Path) -> None:
    def trainer() -> CooperativeTrainer:
        optimizer = partial(torch.optim.Adam, lr=np.float64(1e-3))
        return tiny_trainer(headless_coop(), scheduler=SCHEDULES[name], optimizer=optimizer)

    batches = list(squares())
    straight, first, second = trainer(), trainer(), trainer()
    straight.model.model.decoder[0].p = first.model.model.decoder[0].p = second.model.model.decoder[0].p = 0.0
    straight.fit(batches, epochs=4)
    first.fit(batches, epochs=2)
    first.history[-1]["mine"] = np.float64(3)
    first.save(tmp_path / "a.pt")
    second.resume(tmp_path / "a.pt")
    assert second.history[-1]["mine"] == 3
    second.fit(batches, epochs=4)
    assert same_weights(weights_of(straight), weights_of(second))
    assert [row["lr"] for row in straight.history] == [row["lr"] for row in second.history]


def test_a_state_that_cannot_be_kept_is_refused_before_training(tmp_path: Path) -> None:
    class Odd(lr_scheduler.StepLR):
        def __init__(self, optimizer: Any) -> None:
            super().__init__(optimizer, 1)
            self.where = tmp_path

    with pytest.raises(
        NotPlainError, match=r"optimization\['scheduler'\]\['where'\] can't be kept .* holds a PosixPath"
    ):
        tiny_trainer(scheduler=Odd, folder=tmp_path).fit(squares(), epochs=1)
    trainer = tiny_trainer(scheduler=Odd)
    trainer.fit(squares(), epochs=1)  # nothing is to be written
    with pytest.raises(NotPlainError, match="holds a PosixPath"):
        trainer.save(tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []
