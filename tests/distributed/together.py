"""One rank of `test_together.py`: python together.py RANK WORLD_SIZE FOLDER writes what each check has found."""

from __future__ import annotations

import copy
import logging
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from latentaug import CooperativeModel, HardExamples, cooperative_backward
from latentaug.cooperative.step import standard_backward
from latentaug.ranks import several
from latentaug.training.callbacks import Callback
from latentaug.training.random_streams import random_state
from latentaug.training.sharding import whole
from latentaug.training.trainer import CooperativeTrainer
from tests.distributed.worker import WRAPPERS, batch, cooperative
from tests.support.random_streams import seed_all
from tests.support.tiny_training import Squares, TinyNet, tiny_coop, tiny_trainer, weights_of

GRADIENTS = ("unet", "fine", "prior alone")
HAS_FULLY_SHARD = "fully_shard" in WRAPPERS


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    filled = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    return {
        name: None if grad is None else grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone()
        for name, grad in filled.items()
    }


def step(model: nn.Module, rank: int, **options: Any) -> Any:
    images, labels = batch(rank)
    generator = torch.Generator().manual_seed(10 * rank)
    return cooperative_backward(model, images, labels, generator=generator, **options)


class Holder(nn.Module):
    """Runs the step of the model that it holds within its own forward pass, as Lightning's modules do."""

    def __init__(self, model: CooperativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, rank: int) -> None:
        step(self.model, rank)


class Uneven(TinyNet):
    """Has a part that each rank but the first uses, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.now_and_then, self.never = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return self.now_and_then(logits) if images.mean() > 0.5 else logits


def uneven_gradients(rank: int) -> dict[str, Tensor | None]:
    """Run a step on images by which the model decides what it uses."""
    torch.manual_seed(0)
    images, labels = batch(rank)
    images = images / 4 + 0.7 * rank
    options = {"reconstruction": False, "shape_prior": False, "hard": HardExamples(every=1)}
    model = CooperativeModel(
        Uneven().double(), num_classes=3, example=batch(0)[0] / 4, codes="encoder", image_range=None, **options
    )
    standard_backward(model, images.double(), labels)
    return gradients_of(model)


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def averaged(rank: int, folder: Path) -> dict[Any, Any]:
    """Gradients of models that nothing wraps, or something that does not average."""
    found: dict[Any, Any] = {}
    for name in GRADIENTS:
        model = cooperative(name)
        step(model, rank)
        found[name, "bare"] = gradients_of(model)
        step(model, rank)
        found[name, "twice"] = gradients_of(model)
    model = cooperative("unet")
    DistributedDataParallel(Holder(model), find_unused_parameters=True)(rank)
    found["unet", "held"] = gradients_of(model)
    model = cooperative("unet")
    step(model, rank, average=False)
    found["unet", "alone"] = gradients_of(model)
    if HAS_FULLY_SHARD:
        model = cooperative("unet")
        torch.distributed.fsdp.fully_shard(model.model, mesh=init_device_mesh("cpu", (2,)))
        step(model, rank)
        found["unet", "network sharded"] = gradients_of(model)
    found["uneven"] = uneven_gradients(rank)
    model = cooperative("unet")
    with torch.no_grad():
        next(model.parameters()).add_(rank)
    found["other weights"] = refusal(lambda: step(model, rank))
    return found


# The trainer ----------------------------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def loader(length: int = 12, **options: Any) -> DataLoader:
    """Spread squares over the ranks, three batches for each of two."""
    data = Squares(length=length)
    sampler = DistributedSampler(data, **options) if several() else None
    return DataLoader(data, batch_size=2, sampler=sampler, shuffle=not several())


def own_batches(rank: int, count: int, spoilt: int | None = None) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    batches = [
        (torch.rand(2, 1, 8, 8, generator=generator), torch.randint(3, (2, 8, 8), generator=generator))
        for _ in range(count)
    ]
    for images, _ in batches[count if spoilt is None else spoilt :]:
        images.fill_(math.nan)
    return batches


class Losses(Callback):
    """Remembers what this rank's steps lose."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_step(self, trainer: Any, losses: Any) -> None:
        self.rows.append({name: float(loss) for name, loss in losses.items()})


def sharded(model: CooperativeModel) -> nn.Module:
    return torch.distributed.fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


KINDS: dict[str, Callable[[CooperativeModel], nn.Module]] = {
    "bare": lambda model: model,
    "DDP": DistributedDataParallel,
}
if HAS_FULLY_SHARD:
    KINDS["FSDP2"] = sharded


def trainer_of(kind: str, rank: int, **options: Any) -> CooperativeTrainer:
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    trainer = tiny_trainer(KINDS[kind](tiny_coop()), optimizer=optimizer, **options)
    seed_all(5 + rank)
    return trainer


def whole_weights(trainer: CooperativeTrainer) -> dict[str, Tensor]:
    found = weights_of(trainer)
    return {
        name.removeprefix("module."): value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in found.items()
    }


def streams(trainer: CooperativeTrainer) -> list[Any]:
    assert trainer.generator is not None
    return [trainer.generator.get_state(), random_state(CPU, ())]


def trained(rank: int, folder: Path) -> dict[Any, Any]:
    """Weights, losses and scores of trainings by each kind of model."""
    found: dict[Any, Any] = {}
    for kind in KINDS:
        losses = Losses()
        trainer = trainer_of(kind, rank, callbacks=[losses], ema=0.5)
        trainer.fit(loader(), own_batches(rank, 3 - 2 * rank), epochs=2)
        found[kind] = {"weights": whole_weights(trainer), "losses": losses.rows, "history": trainer.history}
        found[kind] |= {"best": trainer.best, "streams": streams(trainer)} if kind == "bare" else {}
        if kind == "bare":
            found["scores"] = trainer_of(kind, rank).evaluate(own_batches(rank, 3 - 2 * rank))
    torch.manual_seed(rank)
    model = CooperativeModel(TinyNet(), num_classes=3, example=torch.rand(2, 1, 8, 8), codes="encoder")
    trainer = tiny_trainer(model)
    trainer.fit(own_batches(rank, 4 - rank), epochs=1)
    found["other weights, uneven"] = (trainer.global_step, trainer.epoch, whole_weights(trainer))
    return found


class Every(Callback):
    """Does something after an update, or an epoch, on one rank."""

    def __init__(self, action: Callable[[Any], Any], *, step: int = 0, epoch: int = 0) -> None:
        self.action, self.step, self.epoch = action, step, epoch

    def on_step(self, trainer: Any, losses: Any) -> None:
        if trainer.global_step == self.step:
            self.action(trainer)

    def on_epoch(self, trainer: Any, metrics: Any) -> None:
        if trainer.epoch == self.epoch:
            self.action(trainer)


def raised(call: Callable[[], Any]) -> tuple[str, str]:
    try:
        call()
    except BaseException as error:
        if os.environ.get("TELL"):
            traceback.print_exc()
        return type(error).__name__, str(error)
    return "", ""


def send(number: int) -> Callable[[Any], None]:
    return lambda trainer: os.kill(os.getpid(), number)


class Sending:
    """A loader in which a rank gets a signal."""

    def __init__(self, batches: list[Any], number: int) -> None:
        self.batches, self.number = batches, number

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches[:1]
        os.kill(os.getpid(), self.number)
        yield from self.batches[1:]


class Failing:
    """A loader that fails on a rank, or not."""

    def __init__(self, batches: list[Any], fails: bool) -> None:
        self.batches, self.fails = batches, fails

    def __iter__(self) -> Iterator[Any]:
        yield self.batches[0]
        if self.fails:
            raise OSError("a disk is gone")
        yield from self.batches[1:]


def stopped(rank: int, folder: Path) -> dict[Any, Any]:
    """Fits that one rank is asked to end, or fails in; and how they go on."""
    found: dict[Any, Any] = {}
    straight = trainer_of("bare", rank)
    straight.fit(loader(), own_batches(rank, 2), epochs=2)
    found["straight"] = (whole_weights(straight), streams(straight))
    validation = own_batches(rank, 2)
    ways: dict[str, tuple[int, Any, Any]] = {
        "SIGTERM": (1, Every(send(signal.SIGTERM), step=2), validation),
        "Ctrl-C": (0, Every(send(signal.SIGINT), step=4), validation),
        "Ctrl-C after the last update of an epoch": (1, Every(send(signal.SIGINT), step=3), validation),
        "SIGTERM in validation": (1, None, Sending(validation, signal.SIGTERM)),
        "SIGTERM after an epoch": (0, Every(send(signal.SIGTERM), epoch=1), validation),
        "stop": (1, Every(lambda trainer: trainer.stop(), step=2), validation),
        "stop after an epoch": (1, Every(lambda trainer: trainer.stop(), epoch=1), validation),
    }
    for name, (where, callback, scored) in ways.items():
        place = folder / name
        mine = rank == where
        trainer = trainer_of("bare", rank, folder=place, callbacks=[callback] if mine and callback else [])
        said = raised(lambda: trainer.fit(loader(), scored if mine else validation, epochs=2))  # noqa: B023
        at = (trainer.global_step, trainer.epoch)
        if name.startswith("stop"):
            trainer.save(place / "last.pt")
        resumed = trainer_of("bare", rank)
        seed_all(99)
        resumed.resume(place / "last.pt")
        resumed.fit(loader(), validation, epochs=2)
        found[name] = {"said": said, "at": at, "weights": whole_weights(resumed), "streams": streams(resumed)}
    trainer = trainer_of("bare", rank, folder=folder / "lost", max_skipped=2)
    spoilt = own_batches(rank, 6, spoilt=2 if rank else None)
    said = raised(lambda: trainer.fit(spoilt, epochs=1))
    found["not finite"] = {"said": said, "at": trainer.global_step, "files": sorted(os.listdir(folder / "lost"))}
    trainer = trainer_of("bare", rank)
    said = raised(lambda: trainer.fit(Failing(own_batches(rank, 4), fails=rank == 1), epochs=1))
    found["loader"] = {"said": said, "at": trainer.global_step}
    wrong = [(images, labels + 9 * rank) for images, labels in own_batches(rank, 2)]
    found["labels"] = {"said": raised(lambda: trainer_of("bare", rank).fit(wrong, epochs=1))}
    trainer = trainer_of("bare", rank)
    other = (lambda: trainer.save(folder / "alone.pt")) if rank == 0 else (lambda: trainer.evaluate(validation))
    found["different calls"] = {"said": raised(other)}
    taken = folder / "taken"
    if rank == 0:
        taken.mkdir()
        (taken / "training.lock").mkdir()  # no place for a file
    trainer = trainer_of("bare", rank, folder=taken)
    found["folder"] = {"said": raised(lambda: trainer.fit(loader(), epochs=1))}
    return found


# Other numbers of ranks ----------------------------------------------------------------------------------------------


def state_of(trainer: CooperativeTrainer) -> dict[str, Any]:
    """Return all that training depends on, as a whole."""
    average = trainer._average
    assert average is not None
    optimizer = trainer.optimizer.state_dict()["state"]
    state = {"weights": whole_weights(trainer), "optimizer": optimizer, "average": average.state_dict()}
    return copy.deepcopy(whole(state))


def written(folder: Path, kind: str, rank: int) -> CooperativeTrainer:
    """Train until the middle of the second epoch, and write `last.pt`, as Ctrl-C would."""
    trainer = trainer_of(kind, rank, folder=folder, ema=0.5)
    trainer.fit(loader(), own_batches(rank, 2), max_steps=9 // (1 + several()))
    trainer.save(folder / "last.pt")
    return trainer


def elsewhere(rank: int, folder: Path) -> dict[Any, Any]:
    """Checkpoints of two ranks, and what becomes of one that a single process wrote to `one`."""
    found: dict[Any, Any] = {}
    for kind in KINDS:
        straight = written(folder / f"straight {kind}", kind, rank)
        straight.fit(loader(), own_batches(rank, 2), epochs=2)
        trainer = written(folder / f"two {kind}", kind, rank)
        found["written", kind] = {**state_of(trainer), "best": trainer.best}
        for other in KINDS:
            resumed = trainer_of(other, rank, ema=0.5)
            resumed.resume(folder / f"two {kind}" / "last.pt")
            found["resumed", kind, other] = state_of(resumed)
            if kind == other:
                resumed.fit(loader(), own_batches(rank, 2), epochs=2)
                found["gone on", kind] = (state_of(straight), state_of(resumed))
                resumed.load_best()
                found["best", kind] = whole_weights(resumed)
        resumed = trainer_of(kind, rank, ema=0.5)
        resumed.resume(folder / "one" / "last.pt")
        found["one", kind] = {**state_of(resumed), "streams": streams(resumed), "random": resumed._resumed_random}
        resumed.fit(loader(), own_batches(rank, 2), epochs=2)
        found["one", kind] |= {"steps": resumed.global_step, "history": resumed.history}
    return found


CHECKS: tuple[Callable[[int, Path], dict[Any, Any]], ...] = (averaged, trained, stopped, elsewhere)


def main(rank: int, world_size: int, folder: Path, names: list[str]) -> None:
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    logging.basicConfig(level=logging.INFO)
    results = {check.__name__: check(rank, folder) for check in CHECKS if not names or check.__name__ in names}
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
