"""Ctrl-C and SIGTERM leave a checkpoint to continue from, also where worker processes die of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentaug import Callback
from latentaug.training.interrupt import (
    HeldNews,
    Interrupted,
    Interruption,
    Terminated,
    deferred_interrupt,
    undisturbed,
)
from tests.support.random_streams import seed_all
from tests.support.tiny_training import (
    At,
    same_weights,
    squares,
    tiny_trainer,
    weights_of,
)

NOTHING = "^$"  # that Ctrl-C says


def press_ctrl_c(trainer: object) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("num_workers", "pressed_after"), [(0, 1), (0, 3), (2, 1)])
def test_ctrl_c_leaves_a_checkpoint_to_continue_from(tmp_path: Path, num_workers: int, pressed_after: int) -> None:
    straight = tiny_trainer()
    seed_all(5)
    straight.fit(squares(num_workers=num_workers), squares(), epochs=2)

    interrupted = tiny_trainer(folder=tmp_path, callbacks=[At(pressed_after, press_ctrl_c)])
    seed_all(5)
    with pytest.raises(Interrupted, match=NOTHING):
        interrupted.fit(squares(num_workers=num_workers), squares(), epochs=2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert interrupted.global_step == pressed_after

    resumed = tiny_trainer()
    resumed.resume(tmp_path / "last.pt")
    resumed.fit(squares(num_workers=num_workers), squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(resumed))


def test_ctrl_c_during_validation_keeps_the_epoch(tmp_path: Path) -> None:
    def validation() -> Iterator[Any]:
        yield from squares()
        press_ctrl_c(None)
        yield from squares()

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return validation()

    interrupted = tiny_trainer(folder=tmp_path)
    seed_all(5)
    with pytest.raises(Interrupted, match=NOTHING):
        interrupted.fit(squares(), Loader(), epochs=2)
    resumed, straight = tiny_trainer(), tiny_trainer()
    resumed.resume(tmp_path / "last.pt")
    assert (resumed.epoch, resumed.global_step) == (0, 3)
    resumed.fit(squares(), squares(), epochs=2)
    seed_all(5)
    straight.fit(squares(), squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(resumed))
    assert len(resumed.history) == 2


@pytest.mark.parametrize(("steps", "epoch"), [(3, 1), (5, 1)])
def test_ctrl_c_in_the_last_update_leaves_its_epoch_to_be_scored(tmp_path: Path, steps: int, epoch: int) -> None:
    straight = tiny_trainer()
    seed_all(5)
    straight.fit(squares(), squares(), max_steps=steps)

    interrupted = tiny_trainer(folder=tmp_path, callbacks=[At(steps, press_ctrl_c)])
    seed_all(5)
    with pytest.raises(Interrupted, match=NOTHING):
        interrupted.fit(squares(), squares(), max_steps=steps)

    resumed = tiny_trainer()
    resumed.resume(tmp_path / "last.pt")
    resumed.fit(squares(), squares(), max_steps=steps)
    assert (resumed.epoch, resumed.global_step) == (straight.epoch, straight.global_step) == (epoch, steps)
    assert same_weights(weights_of(straight), weights_of(resumed))
    for one, other in zip(straight.history, resumed.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice(trainer: Any) -> None:
        press_ctrl_c(trainer)
        press_ctrl_c(trainer)
        pytest.fail("should have stopped")

    trainer = tiny_trainer(folder=tmp_path, callbacks=[At(2, twice)])
    with pytest.raises(KeyboardInterrupt, match=NOTHING) as stopped:
        trainer.fit(squares(), epochs=1)
    assert stopped.type is KeyboardInterrupt  # and not ours, which waits for a moment to continue from
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_without_a_folder_is_just_ctrl_c() -> None:
    trainer = tiny_trainer(callbacks=[At(2, press_ctrl_c)])
    with pytest.raises(Interrupted, match=NOTHING):
        trainer.fit(squares(), epochs=1)
    assert trainer.global_step == 2


# SIGTERM --------------------------------------------------------------------------------------------------------------


def terminate(trainer: object) -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("moment", ["update", "last update", "validation"])
def test_sigterm_leaves_a_checkpoint_to_continue_from_and_exits_with_143(tmp_path: Path, moment: str) -> None:
    class Validation:
        def __iter__(self) -> Iterator[Any]:
            if moment == "validation":
                terminate(None)
            return iter(squares())

    steps = {"update": 2, "last update": 3}.get(moment, 100)
    interrupted = tiny_trainer(folder=tmp_path, callbacks=[At(steps, terminate)])
    seed_all(5)
    with pytest.raises(SystemExit) as stopped:
        interrupted.fit(squares(), Validation(), epochs=2)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed, straight = tiny_trainer(), tiny_trainer()
    resumed.resume(tmp_path / "last.pt")
    resumed.fit(squares(), squares(), epochs=2)
    seed_all(5)
    straight.fit(squares(), squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(resumed))


@pytest.mark.parametrize(("number", "arrives"), [(signal.SIGINT, press_ctrl_c), (signal.SIGTERM, terminate)])
def test_a_handler_of_the_users_own_stays_in_charge(number: int, arrives: Any) -> None:
    pressed = []
    previous = signal.signal(number, lambda *_: pressed.append(1))
    try:
        trainer = tiny_trainer(callbacks=[At(2, arrives)])
        trainer.fit(squares(), epochs=1)
    finally:
        signal.signal(number, previous)
    assert (pressed, trainer.epoch) == ([1], 1)


def test_nothing_is_handled_outside_the_main_thread() -> None:
    seen: list[Any] = []

    def look() -> None:
        with deferred_interrupt() as interruption:
            seen.extend([signal.getsignal(signal.SIGTERM), interruption.signal])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL, None]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 7)])
def test_a_process_that_is_forked_meanwhile_is_no_trainer(signum: int, code: int) -> None:
    script = (
        "import os, signal, sys, time\n"
        "from latentaug.training.interrupt import deferred_interrupt\n"
        "with deferred_interrupt():\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        f"        os.kill(os.getpid(), {int(signum)}); time.sleep(0.2); os._exit(7)\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "print(os.waitstatus_to_exitcode(status))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.stdout.strip(), run.stderr) == (str(code), "")


# Worker processes -----------------------------------------------------------------------------------------------------

CHILD = """
import signal, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from latentaug import Callback
from tests.support.tiny_training import Squares, tiny_trainer

class Slow(Squares):
    def __getitem__(self, index):
        time.sleep(0.3)
        return super().__getitem__(index)

class Say(Callback):
    def on_step(self, trainer, losses):
        print("step", flush=True)

if __name__ == "__main__":
    _, folder, context, started = sys.argv
    loader = DataLoader(
        Slow(400), batch_size=4, num_workers=2, prefetch_factor=1, persistent_workers=started != "in every epoch",
        multiprocessing_context=context,
    )
    if started == "before":
        next(iter(loader))
    trainer = tiny_trainer(folder=folder, callbacks=[Say()], allocator=False)
    try:
        trainer.fit(loader, epochs=1)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        trainer.callbacks.clear()
        Slow.__getitem__ = Squares.__getitem__
        trainer.fit(loader, max_steps=trainer.global_step + 1)  # as in the next cell of a notebook
        print("went on", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("started", ["before", "in fit", "in every epoch"])
def test_signals_that_reach_the_workers_too_leave_a_checkpoint(
    tmp_path: Path, started: str, context: str, signum: int
) -> None:
    root, script = Path(__file__).parents[2], tmp_path / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), context, started]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as child:
        try:
            assert child.stdout is not None
            while (line := child.stdout.readline()) and line != "step\n":
                pass
            time.sleep(0.3)
            os.killpg(child.pid, signum)
            out, err = child.communicate(timeout=90)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    said = [line for line in out.splitlines() if line != "step"]
    assert said == (["interrupted", "went on"] if signum == signal.SIGINT else []), err
    assert child.returncode == (0 if signum == signal.SIGINT else 143), err
    trainer = tiny_trainer()
    trainer.resume(tmp_path / "last.pt")
    assert trainer.global_step >= 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly"), True),
        (RuntimeError("Pin memory thread exited unexpectedly"), True),
        (EOFError(), True),
        (ConnectionResetError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("DataLoader worker"), False),
    ],
    ids=repr,
)
def test_what_dead_workers_cause_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    interruption = Interruption()
    interruption.signal = signal.SIGINT
    assert interruption.explains(error) == expected


def test_workers_that_die_by_themselves_are_an_error() -> None:
    assert not Interruption().explains(RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."))


def test_while_it_is_waited_for_data_a_signal_takes_effect_at_once() -> None:
    interruption = Interruption()
    interruption.remember(signal.SIGINT)
    news = HeldNews()
    interruption = Interruption(news)
    with pytest.raises(Terminated), interruption.at_once(True):
        interruption.remember(signal.SIGTERM)
    with interruption.at_once(False):
        interruption.remember(signal.SIGTERM)
    news.release()


@pytest.mark.parametrize("pressed_at", [0, 1, 4])
def test_a_signal_while_a_batch_of_worker_processes_is_waited_for_leaves_an_exact_checkpoint(
    tmp_path: Path, pressed_at: int
) -> None:
    class Waits:
        """A loader that is interrupted when it has begun to draw, and before it yields some batch."""

        num_workers, drawn, pressed = 2, 0, False

        def __iter__(self) -> Iterator[Any]:
            for batch in squares(num_workers=2):
                if self.drawn == pressed_at and not self.pressed:
                    self.pressed = True
                    press_ctrl_c(None)
                    pytest.fail("should have stopped at once")
                self.drawn += 1
                yield batch

        def __len__(self) -> int:
            return 3

    interrupted = tiny_trainer(folder=tmp_path)
    seed_all(5)
    with pytest.raises(Interrupted, match=NOTHING):
        interrupted.fit(Waits(), squares(), epochs=2)
    assert interrupted.global_step == pressed_at
    resumed, straight = tiny_trainer(), tiny_trainer()
    resumed.resume(tmp_path / "last.pt")
    resumed.fit(squares(num_workers=2), squares(), epochs=2)
    seed_all(5)
    straight.fit(squares(num_workers=2), squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(resumed))


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What torch's handler is told, for which ours stands: it raises when a worker has died."""
    said: list[str] = []

    def handler(signum: int, frame: object) -> None:
        said.append("news")
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Terminated.")

    previous = signal.signal(signal.SIGCHLD, handler)
    yield said
    restored = signal.signal(signal.SIGCHLD, previous)
    assert restored is handler


def worker_dies(trainer: object = None) -> None:
    signal.raise_signal(signal.SIGCHLD)


def test_news_of_dead_workers_wait_for_the_end_of_an_update(heard: list[str]) -> None:
    def update() -> None:
        worker_dies()
        assert heard == []

    with pytest.raises(RuntimeError, match="DataLoader worker"), undisturbed():
        update()
    assert heard == ["news"]
    with undisturbed():
        pass
    assert heard == ["news"]


def test_news_are_dropped_where_an_update_fails(heard: list[str]) -> None:
    def fails() -> None:
        worker_dies()
        raise ValueError("in the update")

    with pytest.raises(ValueError, match="in the update"), undisturbed():
        fails()
    assert heard == ["news"]  # which a handler that counts children has to hear


def test_news_held_back_within_others_reach_those(heard: list[str]) -> None:
    outer = HeldNews()
    outer.hold()
    with undisturbed():
        worker_dies()
    assert heard == []
    outer.release()
    assert heard == ["news"]


def test_news_that_come_while_they_are_about_to_be_held_back_do_not_disturb(
    heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look, news = signal.getsignal, HeldNews()

    def looks(number: int) -> Any:
        monkeypatch.setattr(signal, "getsignal", look)
        worker_dies()
        return look(number)

    monkeypatch.setattr(signal, "getsignal", looks)
    news.hold()
    worker_dies()
    assert heard == ["news"]
    news.release()
    assert heard == ["news"] * 2


def test_other_errors_pass_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> Any:
        raise RuntimeError("an alarm of the user's")

    monkeypatch.setattr(signal, "getsignal", fails)
    with pytest.raises(RuntimeError, match="an alarm"):
        HeldNews().hold()


def test_a_handler_that_was_kept_meanwhile_hands_on(heard: list[str]) -> None:
    news = HeldNews()
    news.hold()
    kept = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    news.release()
    assert signal.signal(signal.SIGCHLD, kept) is signal.SIG_DFL  # a user's, who gives back what was there
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        worker_dies()
    assert heard == ["news"]
    signal.signal(signal.SIGCHLD, news._handler)


class Dying(Callback):
    """Workers whose end comes while a fit deals with the signal that they died of."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def on_step(self, trainer: Any, losses: Any) -> None:
        if trainer.global_step == 2:
            terminate(trainer)
            if self.moment == "after the step":
                worker_dies()

    def on_end(self, trainer: Any) -> None:
        if self.moment == "at the end":
            worker_dies()


@pytest.mark.parametrize("moment", ["after the step", "while it is kept", "at the end"])
def test_workers_that_die_of_a_signal_at_any_moment_leave_a_checkpoint(
    tmp_path: Path, moment: str, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(folder=tmp_path, callbacks=[Dying(moment)])
    if moment == "while it is kept":
        monkeypatch.setattr(trainer._kept, "keep_last", _dying_while(trainer._kept.keep_last))
    with pytest.raises(Terminated):
        trainer.fit(squares(), epochs=1)
    resumed = tiny_trainer()
    resumed.resume(tmp_path / "last.pt")
    assert resumed.global_step == 2


def _dying_while(save: Any) -> Any:
    def saves(*args: Any, **kwargs: Any) -> Any:
        worker_dies()
        return save(*args, **kwargs)

    return saves
