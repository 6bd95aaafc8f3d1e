"""The best weights are those of this run, wherever it goes on; never those of another."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from latentaug.training.best import Best, keep_in, save_best, weights_of
from latentaug.training.trainer import CooperativeTrainer
from tests.support.random_streams import seed_all
from tests.support.tiny_training import headless_coop, same_weights, squares, tiny_trainer
from tests.support.tiny_training import weights_of as all_weights


def fitted(folder: Path | None, seed: int = 1, epochs: int = 4) -> CooperativeTrainer:
    trainer = tiny_trainer(headless_coop(), folder=folder, seed=seed, optimizer=partial(torch.optim.Adam, lr=0.05))
    seed_all(seed)
    trainer.fit(squares(), list(squares()), epochs=epochs)
    return trainer


def resumed(path: Path, folder: Path | None) -> CooperativeTrainer:
    trainer = tiny_trainer(headless_coop(), folder=folder, optimizer=partial(torch.optim.Adam, lr=0.05))
    trainer.resume(path)
    return trainer


def best_weights(trainer: CooperativeTrainer) -> dict[str, Any]:
    trainer.load_best()
    return all_weights(trainer)


@pytest.mark.parametrize("occupied", [True, False])
def test_a_run_that_goes_on_elsewhere_has_its_own_best_weights(tmp_path: Path, occupied: bool) -> None:
    here, there, third = (tmp_path / name for name in ("here", "there", "third"))
    first = fitted(here)
    if occupied:
        fitted(there, seed=7)
    moved = resumed(here / "last.pt", there)
    expected = best_weights(first)
    assert same_weights(best_weights(moved), expected)
    moved.fit(squares(), epochs=5)  # without a validation that could find a better one
    assert same_weights(torch.load(there / "best.pt", weights_only=True)["model"], expected)
    again = resumed(there / "last.pt", third)
    assert same_weights(best_weights(again), expected)


def test_without_a_folder_they_are_found_beside_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fitted(tmp_path / "here")
    fitted(tmp_path / "elsewhere", seed=7)
    monkeypatch.chdir(tmp_path / "elsewhere")  # where there is another best.pt
    assert same_weights(best_weights(resumed(tmp_path / "here/last.pt", None)), best_weights(first))


def test_a_folder_that_was_moved_is_no_obstacle(tmp_path: Path) -> None:
    first = fitted(tmp_path / "here")
    expected = best_weights(first)
    shutil.move(tmp_path / "here", tmp_path / "moved")
    assert same_weights(best_weights(resumed(tmp_path / "moved/last.pt", tmp_path / "new")), expected)


def test_weights_of_another_run_or_another_epoch_are_refused_by_name(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    fitted(here)
    fitted(there, seed=7)
    (there / "best.pt").replace(here / "best.pt")
    trainer = resumed(here / "last.pt", None)
    before = all_weights(trainer)
    with pytest.raises(ValueError, match=r"its weights are not there: .*best\.pt holds the best epoch of another run"):
        trainer.load_best()
    assert same_weights(before, all_weights(trainer))

    best = Best(3, 0.5, None, "this", str(tmp_path))
    save_best(best._replace(epoch=5, value=0.6), {}, tmp_path)
    with pytest.raises(ValueError, match=r"best epoch of this run is 3, with 0\.5; .* holds epoch 5 of this run"):
        weights_of(best, [])
    (tmp_path / "best.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file \(.*best\.pt\)"):
        weights_of(best, [])


def test_those_that_are_lost_are_told_of_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(tmp_path / "here")
    (tmp_path / "here/best.pt").unlink()
    trainer = resumed(tmp_path / "here/last.pt", tmp_path / "there")
    trainer.fit(squares(), epochs=5)
    assert "its weights are not there" in caplog.text
    assert trainer.epoch == 5


def test_there_is_nothing_to_bring_without_a_best_epoch_or_with_weights_at_hand(tmp_path: Path) -> None:
    keep_in(tmp_path, None, [])
    keep_in(tmp_path, Best(1, 0.5, {}), [])
    assert list(tmp_path.iterdir()) == []


def test_epochs_are_compared_by_what_is_monitored_now() -> None:
    trainer = tiny_trainer(headless_coop())
    trainer.fit(squares(), squares(), epochs=1, monitor="iou")
    assert trainer.best is not None
    trainer.history[0] |= {"val_iou": 0.9, "val_dice": -1.0}
    trainer._kept.best = trainer.best._replace(value=0.9)
    trainer.fit(squares(), squares(), epochs=2, monitor="dice")
    assert trainer.best.epoch == 2
    trainer.history[1]["val_iou"] = 2.0
    trainer.fit(squares(), squares(), epochs=3, monitor="iou")
    assert trainer.best.epoch == 2


def test_the_best_epoch_is_shown_without_its_weights() -> None:
    assert repr(Best(3, 0.51236, {"weight": torch.zeros(99)})) == "Best(epoch=3, value=0.5124, weights in memory)"
    assert repr(Best(3, 0.5, None, folder="runs")) == "Best(epoch=3, value=0.5, weights in runs)"
