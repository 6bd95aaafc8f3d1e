"""Every stream that a training draws from is saved, wherever a loader holds it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from latentaug import CooperativeModel, CooperativeOutput, CooperativeTrainer, cooperative_backward
from latentaug.training.random_streams import check_random_state, random_state, restore_random_state, streams_of
from tests.support.random_streams import seed_all
from tests.support.tiny_training import At, Squares, headless_coop, same_weights, tiny_trainer, weights_of

CPU = torch.device("cpu")


def test_random_state_covers_every_stream() -> None:
    loader = DataLoader(Squares(), generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")

    def draw() -> list[float]:
        own = torch.rand((), generator=loader.generator)
        return [float(torch.rand(())), random.random(), np.random.rand(), np.random.normal(), float(own)]  # noqa: NPY002

    draw()  # leaves NumPy with a normal deviate in store
    state = random_state(device, loader)
    expected = draw()
    assert draw() != expected
    restore_random_state(state, device, loader)
    assert draw() == expected


# Where loaders hold their own -----------------------------------------------------------------------------------------


class Shuffled(Sampler):
    """A sampler that shuffles by a stream of any kind."""

    def __init__(self, length: int, rng: Any) -> None:
        self.length, self.rng = length, rng

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.length))
        self.rng.shuffle(order)
        return iter(order)


class Jittered(Dataset):
    """A data set with a stream of its own, and another one within."""

    def __init__(self) -> None:
        self.dataset, self.rng = Squares(), np.random.default_rng(1)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        images, labels = self.dataset[index]
        return images + self.rng.random() / 30, labels


class Shift:
    """A transform with a stream of its own, within what holds others."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)

    def __call__(self, images: Any) -> Any:
        return images + self.rng.random() / 30


class ShiftModule(nn.Module, Shift):
    """The same as a module, as transforms of libraries are."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        Shift.__init__(self)

    __call__ = Shift.__call__


class Transformed(Squares):
    """A data set with a list of transforms."""

    def __init__(self, transform: Callable[[], Any] = Shift) -> None:
        super().__init__()
        self.transform = SimpleNamespace(transforms=[transform()])

    def __getitem__(self, index: int) -> Any:
        images, labels = super().__getitem__(index)
        return self.transform.transforms[0](images), labels


def shifted_together() -> Callable[[Any], Any]:
    """Return a closure that puts a batch together, and shifts it."""
    shift = Shift()

    def collate(samples: Any, by: float = 1) -> Any:
        images, labels = default_collate(samples)
        return by * shift(images), labels

    return partial(collate, by=1.0)


class ByEpoch(Shuffled):
    """A sampler that shuffles by a count of its epochs."""

    def __init__(self) -> None:
        super().__init__(6, None)
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(np.random.default_rng(self.epoch).permutation(self.length).tolist())


class Around:
    """A loader around another."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def own() -> torch.Generator:
    return torch.Generator().manual_seed(8)


def batches_of(sampler: Any) -> DataLoader:
    return DataLoader(Squares(), batch_sampler=BatchSampler(sampler, 2, False))


LOADERS: dict[str, Callable[[], Any]] = {
    "batch sampler": lambda: batches_of(RandomSampler(Squares(), generator=own())),
    "batch sampler, NumPy": lambda: batches_of(Shuffled(6, np.random.default_rng(8))),
    "batch sampler, NumPy's old kind": lambda: batches_of(Shuffled(6, np.random.RandomState(8))),
    "batch sampler, Python": lambda: batches_of(Shuffled(6, random.Random(8))),
    "sampler": lambda: DataLoader(Squares(), batch_size=2, sampler=SubsetRandomSampler(range(6), generator=own())),
    "both": lambda: DataLoader(
        Squares(), batch_size=2, sampler=RandomSampler(Squares(), generator=own()), generator=own()
    ),
    "data set": lambda: DataLoader(Jittered(), batch_size=2, shuffle=True),
    "transform in a list": lambda: DataLoader(Transformed(), batch_size=2, shuffle=True),
    "transform that is a module": lambda: DataLoader(Transformed(ShiftModule), batch_size=2, shuffle=True),
    "subset of a transformed set": lambda: DataLoader(Subset(Transformed(), range(6)), batch_size=2),
    "what puts batches together": lambda: DataLoader(Squares(), batch_size=2, collate_fn=shifted_together()),
    "around another": lambda: Around(batches_of(RandomSampler(Squares(), generator=own()))),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("saved_after", [2, 3, 4])
def test_resuming_is_exact_wherever_a_loader_holds_its_stream(tmp_path: Path, name: str, saved_after: int) -> None:
    save = At(saved_after, lambda trainer: trainer.save(tmp_path / "a.pt"))
    straight = tiny_trainer(headless_coop(), callbacks=[save])
    seed_all(5)
    straight.fit(LOADERS[name](), epochs=3)
    resumed = tiny_trainer(headless_coop())
    resumed.resume(tmp_path / "a.pt")
    resumed.fit(LOADERS[name](), epochs=3)
    assert same_weights(weights_of(straight), weights_of(resumed))


@pytest.mark.parametrize(("name", "count"), [("both", 2), ("batch sampler", 1), ("data set", 1), ("around another", 1)])
def test_each_stream_is_found_once(name: str, count: int) -> None:
    assert len(streams_of(LOADERS[name]())) == count


def test_an_epoch_that_begins_with_another_batch_than_it_did_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def loader() -> DataLoader:
        return DataLoader(Squares(), batch_size=2, sampler=ByEpoch())

    for loaders, told in (((loader, loader), True), ((LOADERS["sampler"],) * 2, False)):
        straight = tiny_trainer(headless_coop(), callbacks=[At(5, lambda trainer: trainer.save(tmp_path / "a.pt"))])
        straight.fit(loaders[0](), epochs=2)
        resumed = tiny_trainer(headless_coop())
        resumed.resume(tmp_path / "a.pt")
        caplog.clear()
        resumed.fit(loaders[1](), epochs=2)
        assert ("begins with another batch than when the checkpoint was written" in caplog.text) is told


# What else draws from streams of its own ------------------------------------------------------------------------------


OUTSIDE = torch.Generator()


def dimmed(images: torch.Tensor, own: torch.Generator) -> torch.Tensor:
    return images * torch.rand(images.shape, generator=own)


def dimmed_by_a_global(drawn: Any) -> Any:
    return dimmed(drawn[0], OUTSIDE), drawn[1]


def dimmed_by(drawn: Any, own: torch.Generator) -> Any:
    return dimmed(drawn[0], own), drawn[1]


class Dimming:
    """Changes batches, by a stream of its own or by one of its module."""

    def __init__(self, own: torch.Generator | None) -> None:
        self.own = own

    def __call__(self, drawn: Any) -> Any:
        return dimmed(drawn[0], OUTSIDE if self.own is None else self.own), drawn[1]

    def method(self, drawn: Any) -> Any:
        return self(drawn)


def with_own_stream(model: CooperativeModel, own: torch.Generator) -> CooperativeModel:
    """Let a model change its images by a stream that a hook in it holds."""
    model.model.register_forward_pre_hook(lambda module, args: (dimmed(args[0], own),) if module.training else None)
    return model


def drawing_step(own: torch.Generator) -> Callable[..., CooperativeOutput]:
    def step(model: CooperativeModel, images: torch.Tensor, labels: torch.Tensor, **options: Any) -> CooperativeOutput:
        return cooperative_backward(model, dimmed(images, own), labels, **options)

    return step


DRAWING: dict[str, Callable[[torch.Generator], dict[str, Any]]] = {
    "batch, by a closure": lambda own: {"batch": lambda drawn: (dimmed(drawn[0], own), drawn[1])},
    "batch, by a default": lambda own: {
        "batch": partial(lambda drawn, own: (dimmed(drawn[0], own), drawn[1]), own=own)
    },
    "batch, by a global": lambda own: {"batch": dimmed_by_a_global},
    "batch, an object": lambda own: {"batch": Dimming(own)},
    "batch, an object by a global": lambda own: {"batch": Dimming(None)},
    "batch, a method": lambda own: {"batch": Dimming(own).method},
    "step": lambda own: {"step": drawing_step(own)},
    "model": lambda own: {"model": with_own_stream(headless_coop(), own)},
}


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("saved_after", [2, 3])
def test_streams_beside_the_loader_go_on_and_scoring_leaves_them_alone(
    name: str, saved_after: int, tmp_path: Path
) -> None:
    """Save after some updates of three in an epoch, and go on."""

    def trainer(**more: Any) -> CooperativeTrainer:
        seed_all(0)
        OUTSIDE.manual_seed(5)
        options = {"model": headless_coop()} | DRAWING[name](torch.Generator().manual_seed(3))
        return tiny_trainer(**options, **more)

    loader = LOADERS["both"]
    straight = trainer(callbacks=[At(saved_after, lambda trainer: trainer.save(tmp_path / "a.pt"))])
    straight.fit(loader(), epochs=3)
    resumed = trainer()
    resumed.resume(tmp_path / "a.pt")
    resumed.fit(loader(), loader(), epochs=3)
    assert same_weights(weights_of(straight), weights_of(resumed))


def test_objects_of_pythons_own_library_are_not_looked_into() -> None:
    logging.getLogger("latentaug.tests").own = random.Random(0)
    assert streams_of({"logger": logging.getLogger("latentaug.tests"), "own": partial(print, random.Random(1))})
    assert len(streams_of({"logger": logging.getLogger("latentaug.tests")})) == 0


def test_a_long_list_is_taken_for_data_and_streams_are_found_beside_it() -> None:
    data = Transformed()
    data.paths = [{"image": str(number), "own": random.Random(number)} for number in range(1000)]
    assert streams_of(DataLoader(data)) == [data.transform.transforms[0].rng]


def test_a_loader_without_the_streams_of_the_checkpoint_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    state = random_state(CPU, LOADERS["both"]())
    restore_random_state(state, CPU, LOADERS["batch sampler"]())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "hold 1 random generators, and the checkpoint has the states of 2" in record.message


@pytest.mark.parametrize("part", ["cpu", "python", "numpy", "loader"])
def test_a_damaged_state_is_seen_and_nothing_is_restored(part: str) -> None:
    state = random_state(CPU, ())
    expected = torch.rand(())
    restore_random_state(state, CPU, ())
    with pytest.raises((TypeError, ValueError, AttributeError, RuntimeError)):
        check_random_state({**state, part: "damaged"}, CPU)
    assert torch.equal(torch.rand(()), expected)
