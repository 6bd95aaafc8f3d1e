"""Epochs are drawn from where they were left, and what is under way is known."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from latentaug.training.checkpoint import Position
from latentaug.training.drawing import Drawing, rest_of_epoch
from latentaug.training.interrupt import Interrupted
from tests.support.tiny_training import At, headless_coop, squares, tiny_trainer


def test_epochs_of_a_distributed_sampler_are_set() -> None:
    epochs: list[int] = []

    class Sampler:
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)

    class Loader(list):
        sampler = Sampler()

    tiny_trainer().fit(Loader(squares()), epochs=3)
    assert epochs == [0, 1, 2]


def test_epochs_of_samplers_in_batch_samplers_are_set_each_once() -> None:
    epochs: list[tuple[str, int]] = []

    class Epochs:
        def set_epoch(self, epoch: int) -> None:
            epochs.append((type(self).__name__, epoch))

    class Ordered(Epochs, SequentialSampler): ...

    class Grouped(Epochs, BatchSampler): ...

    data = [(images[0], labels[0]) for images, labels in squares(batch_size=1)]
    batches = Grouped(Ordered(data), 4, drop_last=False)
    trainer = tiny_trainer()
    trainer.fit(DataLoader(data, batch_sampler=batches), epochs=2)
    assert sorted(epochs) == [("Grouped", 0), ("Grouped", 1), ("Ordered", 0), ("Ordered", 1)]
    epochs.clear()
    trainer.fit(DataLoader(data, batch_size=4, sampler=Ordered(data)), epochs=3)  # which is in a batch sampler, too
    assert epochs == [("Ordered", 2)]


def test_batches_of_a_distributed_sampler_in_a_batch_sampler_differ_by_epoch() -> None:
    data = torch.arange(16)
    order = DistributedSampler(data, num_replicas=1, rank=0)  # type: ignore[arg-type]
    loader = DataLoader(data, batch_sampler=BatchSampler(order, 4, drop_last=False))  # type: ignore[arg-type]
    drawn = [torch.cat([*rest_of_epoch(loader, Position(epoch), torch.device("cpu"))]) for epoch in (0, 1, 0)]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_another_loader_in_the_middle_of_an_epoch_is_noticed(tmp_path: Path) -> None:
    tiny_trainer(callbacks=[At(2, lambda trainer: trainer.save(tmp_path / "a.pt"))]).fit(squares(), epochs=1)
    resumed = tiny_trainer()
    resumed.resume(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="of which 2 batches were used; got one of 1"):
        resumed.fit(squares(length=2), epochs=1)


def test_a_longer_loader_in_the_middle_of_an_epoch_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopping = [At(2, lambda trainer: trainer.save(tmp_path / "a.pt"))]
    tiny_trainer(headless_coop(), callbacks=stopping).fit(squares(), epochs=1)
    resumed = tiny_trainer(headless_coop())
    resumed.resume(tmp_path / "a.pt")
    resumed.fit(squares(batch_size=1), epochs=1)
    assert "begun with a loader of 3 batches, of which 2 were used; this one has 6" in caplog.text


def test_loaders_are_under_way_until_they_are_through() -> None:
    drawing, outer, inner = Drawing(), [1, 2], [3]
    for _ in drawing.batches(outer, iter(outer)):
        for _ in drawing.batches(inner, iter(inner)):
            assert [loader for loader, _ in drawing.under_way] == [outer, inner]
        assert [loader for loader, _ in drawing.under_way] == [outer]
    assert drawing.under_way == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_signal_takes_effect_at_once_where_worker_processes_draw(num_workers: int) -> None:
    class Loader:
        def __init__(self) -> None:
            self.num_workers = num_workers

        def __iter__(self) -> Iterator[int]:
            drawing.interruption.remember(signal.SIGINT)
            yield 1

    drawing, loader = Drawing(), Loader()
    found: list[Any] = []
    if num_workers:
        with pytest.raises(Interrupted):
            found.extend(drawing.batches(loader, iter(loader)))
    else:
        found.extend(drawing.batches(loader, iter(loader)))
    drawing.news.release()
    assert found == [1] * (num_workers == 0)
