"""Hard examples over training: which moments are kept, and that training does not notice."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentaug import CooperativeTrainer
from study.data.batches import Batch
from study.run.moments import Moments, read_moments
from tests.support.tiny_training import At, same_weights, squares, tiny_trainer, weights_of

STEPS = 10


def volumes(count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    images = [torch.rand(3, 1, 8, 8, generator=generator) for _ in range(count)]
    return [(image, (image[:, 0] * 3).long()) for image in images]


def trained(
    folder: Path | None = None, *, kept: Path | None = None, stop_at: int | None = None
) -> tuple[CooperativeTrainer, tuple[Any, ...]]:
    """A trainer after `STEPS` updates or a stop, and all that could have been disturbed."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    callbacks = [] if kept is None else [Moments(kept, volumes())]
    if stop_at is not None:
        callbacks.append(At(stop_at, lambda trainer: trainer.stop()))
    trainer = tiny_trainer(folder=folder, callbacks=callbacks)
    trainer.model.shape_prior.eval()  # a mode that a fit keeps
    if folder is not None and (folder / "last.pt").exists():
        trainer.resume(folder / "last.pt")
    trainer.fit(squares(), squares(shuffle=False), max_steps=STEPS)
    streams = (torch.rand(3), random.random(), np.random.rand(), trainer.generator.get_state())  # noqa: NPY002
    return trainer, streams


def test_training_is_bit_for_bit_the_same_with_and_without(tmp_path: Path) -> None:
    (plain, streams), (watched, others) = trained(), trained(kept=tmp_path)
    assert len(read_moments(tmp_path)) == 4
    assert same_weights(weights_of(plain), weights_of(watched))  # running statistics among them
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    states = [trainer.optimizer.state_dict()["state"] for trainer in (plain, watched)]
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert [m.training for m in plain.model.modules()] == [m.training for m in watched.model.modules()]
    assert torch.equal(streams[0], others[0])
    assert streams[1:3] == others[1:3]
    assert torch.equal(streams[3], others[3])
    drop = [{name: value for name, value in row.items() if name != "seconds"} for row in plain.history]
    assert drop == [{name: value for name, value in row.items() if name != "seconds"} for row in watched.history]


def test_the_start_the_end_and_moments_between_are_kept(tmp_path: Path) -> None:
    trained(kept=tmp_path)
    moments = read_moments(tmp_path)
    assert [moment.iteration for moment in moments] == [0, 1, 3, STEPS]
    images, labels = volumes()[0]
    for moment in moments:
        assert moment.images.shape == moment.labels.shape == moment.hard_segmentations.shape == (3, 8, 8)
        assert moment.images[0] == pytest.approx(images[1, 0].numpy() * 255, abs=0.5)
        assert np.array_equal(moment.labels[0], labels[1])
    assert not np.array_equal(moments[0].hard_images, moments[-1].hard_images)


def test_a_resumed_training_keeps_the_same_moments(tmp_path: Path) -> None:
    trained(kept=tmp_path / "whole")
    trained(tmp_path / "run", kept=tmp_path / "parts", stop_at=2)
    assert [moment.iteration for moment in read_moments(tmp_path / "parts")] == [0, 1]
    trained(tmp_path / "run", kept=tmp_path / "parts")
    for whole, parts in zip(*(read_moments(tmp_path / name) for name in ("whole", "parts")), strict=True):
        for one, other in zip(whole, parts, strict=True):
            assert np.array_equal(one, other)


def test_nothing_was_kept_where_there_is_no_folder(tmp_path: Path) -> None:
    assert read_moments(tmp_path / "absent") == []
