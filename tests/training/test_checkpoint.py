"""Checkpoints are whole or absent, fit or are refused, and resuming is exact to the bit."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, MultiStepLR, StepLR
from torch.utils.data import DataLoader

from latentaug.cooperative.model import CooperativeModel
from latentaug.training import checkpoint
from latentaug.training.callbacks import CSVLog
from latentaug.training.checkpoint import save_checkpoint
from latentaug.training.optimization import PerStep
from latentaug.training.plain import NotPlainError
from latentaug.training.trainer import CooperativeTrainer
from tests.support.random_streams import seed_all
from tests.support.tiny_training import (
    At,
    Squares,
    TinyNet,
    same_weights,
    squares,
    tiny_coop,
    tiny_trainer,
    weights_of,
)

# Files ----------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_nothing_but_data(tmp_path: Path) -> None:
    trainer = tiny_trainer(scheduler=lambda optimizer: MultiStepLR(optimizer, [1, 2]))
    trainer.fit(squares(), squares(), epochs=1)
    trainer.save(tmp_path / "deep" / "a.pt")
    state = torch.load(tmp_path / "deep" / "a.pt", weights_only=True)
    assert set(state["model"]) == set(trainer.model.state_dict())


# Disks and processes --------------------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from pathlib import Path
from tests.support.tiny_training import squares, tiny_trainer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
trainer = tiny_trainer(folder=folder, allocator=False)
trainer.fit(squares(), epochs=1)
before = (folder / "last.pt").read_bytes()
for share in (0.01, 0.5, 0.99):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(before)), resource.RLIM_INFINITY))
    try:
        trainer.fit(squares(), epochs=trainer.epoch + 1)
    except OSError as error:
        print(error.filename == str(folder / "last.pt"), error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    print((folder / "last.pt").read_bytes() == before, [path.name for path in folder.iterdir()])
"""


@pytest.mark.slow
def test_a_disk_without_room_is_named_and_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    lines = run.stdout.splitlines()
    assert len(lines) == 6, run.stderr
    for told, left in zip(lines[::2], lines[1::2], strict=True):
        assert told.startswith("True ")
        assert f"last.pt can't be written in {tmp_path}: File too large. What it held before is still there" in told
        assert left == "True ['last.pt']"


WRITER = """
import sys, time
from pathlib import Path
from tests.support.tiny_training import tiny_trainer
trainer, end = tiny_trainer(allocator=False), time.monotonic() + 4
print("ready", flush=True)
while time.monotonic() < end:
    trainer.save(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_checkpoint_that_two_processes_write_is_whole_at_every_moment(tmp_path: Path) -> None:
    root, path, trainer = Path(__file__).parents[2], tmp_path / "last.pt", tiny_trainer()
    trainer.save(path)
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(path)]
    writers = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        read = 0
        while any(writer.poll() is None for writer in writers):
            trainer.resume(path)
            read += 1
    finally:
        for writer in writers:
            writer.kill() if writer.poll() is None else None
            writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read > 5
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("seed", range(6))
def test_every_flipped_bit_is_refused_and_the_trainer_is_as_it_was(tmp_path: Path, seed: int) -> None:
    path, generator = tmp_path / "a.pt", random.Random(seed)
    tiny_trainer().save(path)
    content, trainer = path.read_bytes(), tiny_trainer()
    for _ in range(10):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(damaged))
        refused(trainer, path, "can't be read as a checkpoint")


class Odd(torch.Tensor):
    """A tensor of a class that reading back doesn't know."""


def test_a_state_that_torch_could_not_read_back_is_refused_when_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "plain", lambda value, where: value)  # which has missed it
    with pytest.raises(NotPlainError, match=r"a\.pt would hold what can't be read back"):
        save_checkpoint({"model": {"weight": torch.ones(2).as_subclass(Odd)}}, tmp_path / "a.pt")
    assert os.listdir(tmp_path) == []


KILLED_RUN = """
import sys
from tests.support.tiny_training import squares, tiny_trainer
trainer = tiny_trainer(folder=sys.argv[1])
trainer.fit(squares(), epochs=10_000)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", KILLED_RUN, str(tmp_path)], cwd=root) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "last.pt").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.3)
        process.kill()
    trainer = tiny_trainer()
    trainer.resume(tmp_path / "last.pt")
    assert trainer.epoch >= 1
    assert trainer.global_step == 3 * trainer.epoch
    trainer.fit(squares(), epochs=trainer.epoch + 1)


# Exact resumption -----------------------------------------------------------------------------------------------------


def own_stream(num_workers: int) -> DataLoader:
    generator = torch.Generator().manual_seed(8)
    return DataLoader(Squares(), batch_size=2, shuffle=True, generator=generator, num_workers=num_workers)


def save_to(path: Path) -> Any:
    return lambda trainer: trainer.save(path)


SETTINGS: dict[str, dict[str, Any]] = {
    "global stream": {"seed": None},
    "accumulation": {"accumulate": 2},
    "momentum, per epoch": {
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "scheduler": partial(StepLR, step_size=1),
    },
    "per step": {"scheduler": PerStep(partial(LinearLR, total_iters=5))},
    "float16": {"precision": "float16"},
}


@pytest.mark.parametrize("saved_after", [2, 3, 4])
def test_resuming_gives_what_an_uninterrupted_run_gives(tmp_path: Path, saved_after: int) -> None:
    run_and_compare(tmp_path, {}, saved_after, squares)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_resuming_is_exact_whatever_the_settings(tmp_path: Path, settings: dict[str, Any]) -> None:
    run_and_compare(tmp_path, settings, 2 if "accumulate" not in settings else 3, squares)


@pytest.mark.parametrize("make_loader", [squares, own_stream])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_is_exact_with_workers_and_with_a_stream_of_the_loaders_own(
    tmp_path: Path, make_loader: Any, num_workers: int
) -> None:
    run_and_compare(tmp_path, {}, saved_after=4, make_loader=partial(make_loader, num_workers=num_workers))


def run_and_compare(tmp_path: Path, settings: dict[str, Any], saved_after: int, make_loader: Any) -> None:
    straight = tiny_trainer(**settings, callbacks=[At(saved_after, save_to(tmp_path / "a.pt"))])
    seed_all(5)
    straight.fit(make_loader(), squares(), epochs=2)

    resumed = tiny_trainer(**settings)
    seed_all(6)
    resumed.resume(tmp_path / "a.pt")
    assert resumed.global_step == saved_after
    torch.rand(3)  # what happens between resuming and fitting doesn't matter
    resumed.fit(make_loader(), squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(resumed))
    for one, other in zip(straight.history, resumed.history, strict=True):
        assert {**one, "seconds": 0} == pytest.approx({**other, "seconds": 0}, rel=0, abs=0, nan_ok=True)


def test_another_seed_would_show(tmp_path: Path) -> None:
    straight = tiny_trainer(callbacks=[At(3, save_to(tmp_path / "a.pt"))])
    seed_all(5)
    straight.fit(squares(), epochs=2)
    resumed = tiny_trainer()
    resumed.resume(tmp_path / "a.pt")
    resumed._resumed_random = None
    seed_all(6)
    resumed.fit(squares(), epochs=2)
    assert not same_weights(weights_of(straight), weights_of(resumed))


def test_the_folder_is_enough_to_continue_and_the_log_has_each_epoch_once(tmp_path: Path) -> None:
    def trainer() -> CooperativeTrainer:
        return tiny_trainer(folder=tmp_path, callbacks=[CSVLog(tmp_path / "log.csv")])

    first = trainer()
    first.fit(squares(), squares(), epochs=2)
    best = first.best
    second = trainer()
    second.resume(tmp_path / "last.pt")
    assert second.best == best
    assert (second.epoch, second.history) == (2, first.history)
    (tmp_path / "log.csv").write_text("a row that a crash cut sh")
    second.fit(squares(), squares(), epochs=4)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "last.pt", "log.csv"]


def test_best_weights_in_memory_travel_with_the_checkpoint(tmp_path: Path) -> None:
    first = tiny_trainer(optimizer=partial(torch.optim.Adam, lr=0.05))
    val_loader = list(squares())
    first.fit(squares(), val_loader, epochs=3)
    first.save(tmp_path / "a.pt")
    second = tiny_trainer()
    second.resume(tmp_path / "a.pt")
    second.load_best()
    assert second.evaluate(val_loader)["refined_iou"] == first.best.value


# Refusals -------------------------------------------------------------------------------------------------------------


def half_of(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_optimizer(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    del state["optimization"]
    torch.save(state, path)


class Harmful:
    """Would run code when unpickled."""

    def __reduce__(self) -> Any:
        return print, ("harm",)


SPOILERS: dict[str, tuple[Any, str]] = {
    "cut off": (half_of, "can't be read as a checkpoint; it may be cut off"),
    "empty": (lambda path: path.write_bytes(b""), "can't be read as a checkpoint"),
    "text": (lambda path: path.write_text("epoch,loss\n1,2\n"), "can't be read as a checkpoint"),
    "a list": (lambda path: torch.save([1, 2], path), "no checkpoint that can be resumed: it lacks 'best'"),
    "bare weights": (lambda path: torch.save(TinyNet().state_dict(), path), "it lacks 'best', 'generator', 'model'"),
    "a missing key": (without_optimizer, "it lacks 'optimization'"),
    "code": (lambda path: torch.save({"model": Harmful()}, path), "can't be read as a checkpoint"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILERS.values(), ids=SPOILERS)
def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.pt"
    tiny_trainer().save(path)
    spoil(path)
    refused(tiny_trainer(), path, message)
    assert "harm" not in capsys.readouterr().out


def wider(num_classes: int = 3) -> CooperativeModel:
    return CooperativeModel(
        torch.nn.Sequential(torch.nn.Conv2d(1, 8, 4, 4), torch.nn.ConvTranspose2d(8, num_classes, 4, 4)),
        num_classes=num_classes,
        example=torch.rand(2, 1, 8, 8),
        codes="0",
    )


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "other classes": (
        {"model": lambda: tiny_coop(4)},
        r"doesn't fit this CooperativeModel: '[\w.]+' is \(\d.*, not \(",
    ),
    "other model": ({"model": wider}, r"'model.0.weight' is missing; .* and \d+ more\."),
    "other groups": (
        {"optimizer": lambda parameters: torch.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:]}])},
        r"written with parameter groups \[\d+\]; this trainer has \[2, \d+\]",
    ),
    "other optimizer": (
        {"optimizer": partial(torch.optim.SGD, lr=0.1)},
        "written with optimizer 'Adam'; this trainer has 'SGD'",
    ),
    "a scheduler": (
        {"scheduler": partial(StepLR, step_size=1)},
        "written with scheduler None; this trainer has 'StepLR'",
    ),
    "other precision": (
        {"precision": "bfloat16"},
        "written with precision 'float32'; this trainer has 'bfloat16'. Build the trainer as it was",
    ),
    "no seed": ({"seed": None}, "written with seed 'given'; this trainer has None"),
}


@pytest.mark.parametrize(("options", "message"), MISFITS.values(), ids=MISFITS)
def test_a_checkpoint_of_another_trainer_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.pt"
    tiny_trainer().save(path)
    options = dict(options)
    refused(tiny_trainer(options.pop("model", tiny_coop)(), **options), path, message)


def test_other_names_of_the_same_number_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    trainer = tiny_trainer()
    trainer.save(path)
    state = torch.load(path, weights_only=True)
    state["model"]["other"] = state["model"].pop("model.encoder.0.bias")
    torch.save(state, path)
    refused(trainer, path, r"'model.encoder.0.bias' is missing; 'other' is unknown to the model\.")


def test_a_missing_file_is_no_surprise(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.pt"):
        tiny_trainer().resume(tmp_path / "a.pt")


def refused(trainer: CooperativeTrainer, path: Path, message: str) -> None:
    """Resuming raises, and a fit afterwards is as if nobody had tried."""
    before = weights_of(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.resume(path)
    assert same_weights(before, weights_of(trainer))
    assert (trainer.epoch, trainer.global_step, trainer.history, trainer.best) == (0, 0, [], None)
    assert trainer.optimizer.state_dict()["state"] == {}
    assert trainer._resumed_random is None
