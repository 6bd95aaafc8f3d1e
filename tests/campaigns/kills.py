"""A training that may be killed at any moment, by a signal that nobody can catch, and started again.

Run as a program, it trains in a folder, going on from `last.pt` where there is one. It kills itself once as many lines
of the trainer's code have run as it is told: the same line for the same number, in the middle of an update or of a file
that is being written. Or after some time, which may be anywhere in PyTorch too.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NamedTuple

import torch

EPOCHS = 4
ROOM = f"{os.sep}training{os.sep}"
FILES = ("files.py", "checkpoint.py", "best.py", "lock.py", "digest.py")  # which are at work while files are written


class Kill(NamedTuple):
    """When a run kills itself."""

    after: float = 0  # lines, or seconds; 0 for never
    of: str = "lines"  # "lines", "lines of files", "seconds"


NEVER = Kill()


class End(NamedTuple):
    """How a run ended."""

    killed: bool
    lines: dict[str, int]  # of the trainer's code, all and those of files; none if killed


class Whole(NamedTuple):
    """What a training that nobody kills comes to, and how many lines it takes."""

    outcome: dict[str, Any]
    lines: dict[str, int]


def whole(folder: Path) -> Whole:
    """Train without a kill."""
    end = run(folder)
    return Whole(outcome(folder), end.lines)


def moments(rng: Random, lines: dict[str, int]) -> Iterator[Kill]:
    """Draw when to kill: anywhere in the trainer's code, or while it writes files, or at any time."""
    while True:
        of = rng.choice(["lines", "lines", "lines of files", "lines of files", "seconds"])
        yield Kill(rng.uniform(0.05, 1.5), of) if of == "seconds" else Kill(rng.randrange(1, lines[of]), of)


def run(folder: Path, kill: Kill = NEVER) -> End:
    """Run the program until it has trained, or until it is killed."""
    command = [sys.executable, "-W", "ignore", __file__, str(folder), str(kill.after), kill.of]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    killed = done.returncode == -signal.SIGKILL
    if not killed and done.returncode:
        raise RuntimeError(f"the training ended with {done.returncode}: {done.stdout}{done.stderr}")
    return End(
        killed,
        {} if killed else dict(zip(("lines", "lines of files"), map(int, done.stdout.split()[-2:]), strict=True)),
    )


def outcome(folder: Path) -> dict[str, Any]:
    """Return what a training has come to: weights, optimizer, history without the seconds, and the best weights."""
    last, best = (torch.load(folder / name, weights_only=True) for name in ("last.pt", "best.pt"))
    kept = {key: last[key] for key in ("model", "optimization", "generator", "random")}
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in last["position"]["history"]]
    place = {key: last["position"][key] for key in ("epoch", "step", "batches")}
    best = {key: value for key, value in best.items() if key != "run"}  # by chance, to tell one run from another
    with (folder / "log.csv").open() as file:
        log = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return {**kept, "history": rows, "position": place, "best": best, "log": log}


class _Killer:
    """Counts the lines of the trainer's code, and kills the process at one of them."""

    def __init__(self, kill: Kill) -> None:
        self.kill, self.lines, self.of_files = kill, 0, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        if "latentaug" not in path or ROOM not in path:
            return None
        return self.line_of_files if path.endswith(FILES) else self.line

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines += event == "line"
        if self.kill.of == "lines" and self.lines == self.kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.line

    def line_of_files(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.of_files += event == "line"
        if self.kill.of == "lines of files" and self.of_files == self.kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.line(frame, event, argument)
        return self.line_of_files


def main(folder: Path, kill: Kill) -> None:
    """Train, going on from where an earlier run was."""
    from latentaug.training.callbacks import CSVLog
    from tests.support.random_streams import seed_all
    from tests.support.tiny_training import squares, tiny_trainer

    seed_all(5)
    trainer = tiny_trainer(folder=folder, clip_norm=1.0, callbacks=[CSVLog(folder / "log.csv")])
    if kill.of == "seconds" and kill.after:
        timer = threading.Timer(kill.after, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    killer = _Killer(kill)
    sys.settrace(killer)
    if (folder / "last.pt").exists():
        trainer.resume(folder / "last.pt")
    trainer.fit(squares(), squares(), epochs=EPOCHS)
    sys.settrace(None)
    print(killer.lines, killer.of_files)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Kill(float(sys.argv[2]), sys.argv[3]))
