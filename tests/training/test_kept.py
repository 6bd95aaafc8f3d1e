"""What is kept of a run, and where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from latentaug import ranks
from latentaug.training.kept import Kept
from tests.support.tiny_training import headless_coop, squares, tiny_trainer


def test_best_weights_are_kept_in_memory_or_in_the_folder(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    for kept in (Kept(None), Kept(tmp_path)):
        kept.keep_best(3, 0.5, model)
        before = model.weight.detach().clone()
        nn.init.zeros_(model.weight)
        weights, _ = kept.best_weights()
        assert torch.equal(weights["weight"], before)
        assert kept.best is not None
        assert (kept.best.epoch, kept.best.weights is None) == (3, kept.folder is not None)
    assert os.listdir(tmp_path) == ["best.pt"]


def test_the_folder_of_rank_0_is_meant_and_no_other_rank_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = str(tmp_path / "first")
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    monkeypatch.setattr(
        ranks, "gathered", lambda what, value: [first if what == "a folder to write to" else value, value]
    )
    for kept in (Kept(None), Kept(tmp_path / "own")):
        assert kept.writes_to() == Path(first)
        with kept.locked():
            kept.beat()
            kept.keep_best(1, 0.5, nn.Linear(2, 1))
        assert kept.best is not None
        assert kept.best.folder == first
    assert os.listdir(tmp_path) == []


def test_weights_that_are_not_finite_are_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    model, kept = nn.Linear(2, 1), Kept(None)
    nn.init.constant_(model.bias, float("nan"))
    kept.keep_best(2, 0.5, model)
    assert kept.best is None
    assert "Epoch 2 is not kept as the best one" in caplog.text
    with pytest.raises(RuntimeError, match="load_best needs an epoch that was evaluated"):
        kept.best_weights()


def test_a_folder_that_is_held_is_told_to_live(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.beat()
    with kept.locked():
        assert kept.lock is not None
        assert os.listdir(tmp_path) == ["training.lock"]
    assert kept.lock is None
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_of_another_training_is_not_replaced_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fit(*, resume: bool, epochs: int) -> str:
        caplog.clear()
        trainer = tiny_trainer(headless_coop(), folder=tmp_path)
        if resume:
            trainer.resume(tmp_path / "last.pt")
        for epoch in range(1, epochs + 1):
            trainer.fit(squares(), epochs=epoch)
        return caplog.text

    assert "of another training" not in fit(resume=False, epochs=2)
    assert "of another training" not in fit(resume=True, epochs=3)
    assert "last.pt is of another training, and will be replaced" in fit(resume=False, epochs=1)
