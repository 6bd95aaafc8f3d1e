"""A resume is whole, or leaves the trainer as it was and names the file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import SequentialLR, StepLR

from latentaug import DropBlock, HardExamples, Schedule
from latentaug.training.trainer import CooperativeTrainer
from tests.support.tiny_training import At, headless_coop, same_weights, squares, tiny_coop, tiny_trainer, weights_of

WRONG: dict[str, Any] = {
    "nothing": None,
    "a text": "x",
    "a list": [1],
    "a number": 3,
    "unknown": {"note": 1},
    "empty": {},
}


def in_turn(optimizer: Any) -> SequentialLR:
    return SequentialLR(optimizer, [StepLR(optimizer, 1), StepLR(optimizer, 1)], [2])


def make(seed: int = 1) -> CooperativeTrainer:
    return tiny_trainer(scheduler=in_turn, optimizer=partial(torch.optim.Adam, lr=0.01), seed=seed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "a.pt"
    trainer = make()
    trainer.callbacks = [At(4, lambda trainer: trainer.save(path))]  # in the middle of an epoch
    trainer.fit(squares(), squares(), epochs=2)
    return path


def state_of(trainer: CooperativeTrainer) -> dict[str, Any]:
    generator = trainer.generator
    return copy.deepcopy(
        {
            "model": weights_of(trainer),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": None if trainer.scheduler is None else trainer.scheduler.state_dict(),
            "generator": None if generator is None else generator.get_state(),
            "position": vars(trainer._position),
            "rest": (trainer.best, trainer._kept.run, trainer._resumed_random, trainer._kept.resumed_from),
        }
    )


def places(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths to everything in a checkpoint, down to three levels."""
    found = [path] if path else []
    if isinstance(state, dict) and len(path) < 3:
        for key, value in state.items():
            found += places(value, (*path, key))
    return found


def damaged(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    old = inner[path[-1]]
    inner[path[-1]] = {**old, **value} if value == {"note": 1} and isinstance(old, dict) else value
    return state


def refusal_of(trainer: CooperativeTrainer, path: Path) -> Exception | None:
    try:
        trainer.resume(path)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_whatever_part_is_damaged_the_trainer_is_as_it_was_and_the_file_is_named(
    checkpoint: Path, wrong: str, depth: int, tmp_path: Path
) -> None:
    whole = torch.load(checkpoint, weights_only=True)
    trainer, path, refused = make(seed=2), tmp_path / "damaged.pt", 0
    before = state_of(trainer)
    for place in places(whole):
        if len(place) != depth or (place[0] == "model" and depth > 1 and not place[1].endswith("encoder.0.bias")):
            continue
        torch.save(damaged(whole, place, WRONG[wrong]), path)
        error = refusal_of(trainer, path)
        if error is None:  # it doesn't matter there
            trainer = make(seed=2)
            before = state_of(trainer)
            continue
        refused += 1
        assert isinstance(error, ValueError), place
        assert str(path) in str(error), place
        after = state_of(trainer)
        assert same_weights(after["model"], before["model"]), place
        assert repr({**after, "model": 0}) == repr({**before, "model": 0}), place
    assert refused > 0
    trainer.fit(squares(), squares(), epochs=2)


def test_an_error_in_the_middle_of_loading_is_undone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(seed=2)
    before = state_of(trainer)
    load = StepLR.load_state_dict
    calls = []

    def fails_once(self: Any, state: Any) -> None:
        calls.append(1)
        load(self, state)
        if len(calls) == 2:
            raise ZeroDivisionError("in the second schedule")

    monkeypatch.setattr(StepLR, "load_state_dict", fails_once)
    with pytest.raises(ValueError, match=r"a\.pt can't be resumed from, .*ZeroDivisionError: in the second schedule"):
        trainer.resume(checkpoint)
    assert repr(state_of(trainer)) == repr(before)


def test_a_checkpoint_that_was_written_before_is_resumed(checkpoint: Path, tmp_path: Path) -> None:
    """As version 0.1.0 wrote them: no digest, no name of the run, no settings, and a loss among the weights."""
    state = torch.load(checkpoint, weights_only=True)
    del state["run"], state["optimization"]["asked"], state["position"]["counted"]
    state["best"] = None
    state["model"]["loss.weight"] = torch.ones(3)
    state["random"]["loader"] = []
    torch.save(state, tmp_path / "older.pt")
    older, newer = make(), make()
    older.resume(tmp_path / "older.pt")
    newer.resume(checkpoint)
    for trainer in (older, newer):
        trainer.fit(squares(), epochs=2)
    assert same_weights(weights_of(older), weights_of(newer))
    for one, other in zip(older.history, newer.history, strict=True):
        assert {**one, "seconds": 0} == pytest.approx({**other, "seconds": 0}, nan_ok=True)


LOSSES: dict[str, Callable[[float], Any]] = {
    "cross entropy": lambda weight: torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, weight])),
    "learned": lambda weight: Learned(weight),
}


class Learned(torch.nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, logits: Any, labels: Any) -> Any:
        return self.weight * torch.nn.functional.cross_entropy(logits, labels)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_this_call_counts(name: str, tmp_path: Path) -> None:
    first = tiny_trainer(tiny_coop(loss=LOSSES[name](1.0)))
    first.fit(squares(), epochs=1)
    first.save(tmp_path / "a.pt")
    assert not any("loss" in key for key in torch.load(tmp_path / "a.pt", weights_only=True)["model"])
    coop = tiny_coop(loss=LOSSES[name](5.0))
    second = tiny_trainer(coop)
    second.resume(tmp_path / "a.pt")
    images, labels = torch.rand(2, 1, 8, 8), torch.randint(3, (2, 8, 8))
    output = coop.eval()(images, labels)
    torch.testing.assert_close(output.losses["segmentation"], LOSSES[name](5.0)(output.logits, labels))


def frozen(*names: str, flip: bool = False) -> CooperativeTrainer:
    """Make a trainer some of whose parameters, which have the same shapes, are frozen or come in another order."""
    coop = headless_coop()
    for name in names:
        coop.model.get_parameter(name).requires_grad_(False)

    def optimizer(parameters: Any) -> Any:
        return torch.optim.Adam(parameters[::-1] if flip else parameters, lr=0.01)

    return tiny_trainer(coop, optimizer=optimizer)


@pytest.mark.parametrize("other", [{"names": ("encoder.1.weight",)}, {"names": ("encoder.1.bias",), "flip": True}])
def test_the_state_of_other_parameters_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    path = tmp_path / "a.pt"
    frozen("encoder.1.bias").save(path)
    frozen("encoder.1.bias").resume(path)
    resumed = frozen(*other["names"], flip=other.get("flip", False))
    with pytest.raises(ValueError, match=r"the optimizer had 'model\.\S+' where it has 'model\.\S+' in this trainer"):
        resumed.resume(path)
    state = torch.load(path, weights_only=True)
    del state["settings"]["parameters"]  # as older checkpoints are
    torch.save(state, path)
    resumed.resume(path)


def test_a_seed_that_has_no_effect_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_trainer(headless_coop(), seed=1).save(tmp_path / "a.pt")
    tiny_trainer(headless_coop(), seed=1).resume(tmp_path / "a.pt")
    assert "seed" not in caplog.text
    tiny_trainer(headless_coop(), seed=2).resume(tmp_path / "a.pt")
    assert "of seed 1; this call's seed=2 has no effect" in caplog.text


SETTINGS: dict[str, dict[str, Any]] = {
    "every batch": {"hard": HardExamples(every=1)},
    "every third": {"hard": HardExamples(every=3)},
    "rare saliency": {"hard": HardExamples(every=1, saliency_every=2)},
    "a transform": {"augment": DropBlock(0.1)},
    "a scheduled transform": {"augment": DropBlock(Schedule(0.0, 0.1, iterations=5))},
}


@pytest.mark.parametrize("now", SETTINGS)
@pytest.mark.parametrize("then", SETTINGS)
def test_hard_examples_and_transforms_are_those_of_this_call(then: str, now: str, tmp_path: Path) -> None:
    first = tiny_trainer(tiny_coop(**SETTINGS[then]), folder=tmp_path)
    first.fit(squares(), squares(), epochs=1)
    second = tiny_trainer(tiny_coop(**SETTINGS[now]))
    second.resume(tmp_path / "last.pt")
    weights, own = weights_of(first), weights_of(second)
    shared = [name for name in own if not name.endswith("_extra_state")]
    assert all(torch.equal(weights[name], own[name]) for name in shared)
    second.load_best()
    second.fit(squares(), epochs=2)


def test_what_another_module_keeps_beside_its_weights_is_no_setting(tmp_path: Path) -> None:
    class Keeping(torch.nn.Module):
        def get_extra_state(self) -> torch.Tensor:
            return torch.ones(1)

        def set_extra_state(self, state: torch.Tensor) -> None:
            pass

    model = headless_coop()
    tiny_trainer(model).save(tmp_path / "a.pt")
    other = headless_coop()
    other.model.keeping = Keeping()
    with pytest.raises(ValueError, match=r"'model\.keeping\._extra_state' is missing"):
        tiny_trainer(other).resume(tmp_path / "a.pt")
