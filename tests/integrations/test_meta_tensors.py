"""MONAI's tensors with metadata train, are scored and are resumed as plain ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.cooperative.model import CooperativeModel
from latentaug.training.trainer import CooperativeTrainer
from tests.support.cooperation import small_ftn
from tests.support.tiny_training import At, same_weights, tiny_trainer, weights_of

pytestmark = pytest.mark.integration


def batches(kind: Any) -> list[tuple[Tensor, Tensor]]:
    images = torch.rand(4, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return [(kind(one), kind((3 * one[:, 0]).long())) for one in images]


def fitted(kind: Any, path: Path) -> CooperativeTrainer:
    """Train, and resume from a checkpoint in the middle of the second epoch."""
    options: dict[str, Any] = {"accumulate": 2, "clip_norm": 1.0, "ema": 0.9}
    torch.manual_seed(0)
    tiny_trainer(**options, callbacks=[At(3, lambda trainer: trainer.save(path))]).fit(
        batches(kind), batches(kind), epochs=2
    )
    resumed = tiny_trainer(**options)
    resumed.resume(path)
    resumed.fit(batches(kind), batches(kind), epochs=2)
    return resumed


def test_a_training_on_them_is_that_on_plain_tensors(tmp_path: Path) -> None:
    meta_tensor = pytest.importorskip("monai.data").MetaTensor
    plain, meta = fitted(torch.clone, tmp_path / "plain.pt"), fitted(meta_tensor, tmp_path / "meta.pt")
    assert same_weights(weights_of(plain), weights_of(meta))
    rows = [[{**row, "seconds": 0} for row in one.history] for one in (plain, meta)]
    assert rows[0] == rows[1]
    kinds = {type(one) for one in torch.load(tmp_path / "meta.pt", weights_only=True)["position"]["sums"].values()}
    assert kinds == {Tensor}
    images, _ = batches(meta_tensor)[0]
    assert isinstance(meta.predict(images), meta_tensor)  # with where it lies in space


def test_a_model_is_made_from_one() -> None:
    meta_tensor = pytest.importorskip("monai.data").MetaTensor
    images, labels = meta_tensor(torch.rand(2, 1, 16, 16)), meta_tensor(torch.randint(3, (2, 16, 16)))
    coop = CooperativeModel(small_ftn(), num_classes=3, example=images)
    coop(images, labels).loss.backward()
    assert {type(one.grad) for one in coop.parameters()} == {Tensor}
    assert {type(one) for one in coop.buffers()} == {Tensor}
