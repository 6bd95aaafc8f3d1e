"""The first iterations of the paper's training, by the cardiac example, and how long all of it would take."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.report import Options, Report, Table
from benchmarks.step import deadline

EXAMPLES = Path(__file__).parents[1] / "examples"
METHOD = "cooperative"
TINY = ["--image-size", "64", "--depth", "2", "--width", "4", "--batch-size", "2"]
"""What makes the quick form quick, where cores are few and busy."""
FORMATS = {
    "seconds per iteration": "{:.3f}",
    "iterations": "{:.0f}",
    "iterations of all": "{:,.0f}",
    "hours of all": "{:.1f}",
}


@dataclass(frozen=True)
class Epoch:
    """One line of a training's log.

    Args:
        step: Iterations so far.
        seconds: What this epoch took, its validation included.
    """

    step: int
    seconds: float


def run(options: Options) -> Report:
    """Train on the generated phantom by the paper's preset; in quick form by the quick one."""
    preset, iterations = ("quick", 4) if options.quick else ("paper", 200)
    with tempfile.TemporaryDirectory() as folder:
        epochs, ending = train(preset, iterations, options, Path(folder))
    done = epochs[-1].step if epochs else 0
    failed = None if done >= iterations else f"iteration {done} of {iterations} was reached: {ending}"
    columns = ("iterations", "seconds per iteration", "iterations of all", "hours of all")
    rows = {METHOD: whole(epochs, preset)} if epochs else {}
    table = Table(f"the example's preset '{preset}', on its phantom", columns, rows, FORMATS)
    return Report([table], drawn=columns[1], notes=NOTES, failed=failed)


NOTES = (
    "Seconds are those of the log: of an epoch with its validation, by its iterations; the median of all epochs after "
    "the first. *All* is the preset's own length, with as many slices as the phantom has, and without the tests that "
    "follow it.",
)


def train(preset: str, iterations: int, options: Options, folder: Path) -> tuple[list[Epoch], str]:
    """Run the example until its log has the iterations; return the log, and how it ended."""
    command = [sys.executable, str(EXAMPLES / "acdc_cooperative.py"), "--preset", preset, "--methods", METHOD]
    command += ["--iterations", str(iterations), "--draws", "1", "--device", options.device]
    command += ["--threads", str(options.threads), "--output", str(folder / "run"), "--cache", str(folder / "cache")]
    command += TINY if options.quick else []
    said = folder / "said.txt"
    left = deadline(options.seconds)
    with said.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and ((rest := left()) is None or rest > 0):
                if (epochs := read(folder / "run")) and epochs[-1].step >= iterations:
                    break  # what follows are the tests
                time.sleep(0.2)
        finally:
            running = process.poll() is None
            process.terminate()
            process.wait()
    lines = said.read_text().strip().splitlines()
    return read(folder / "run"), "no time was left" if running else " / ".join(lines[-3:])


def read(folder: Path) -> list[Epoch]:
    """Read the log of a training, as far as it is written."""
    for log in folder.rglob("log.csv"):
        with log.open(newline="") as file:
            lines = [row for row in csv.DictReader(file) if row.get("loss")]
        return [Epoch(int(row["step"]), float(row["seconds"])) for row in lines]
    return []


def whole(epochs: list[Epoch], preset: str) -> tuple[float | None, ...]:
    """Return iterations, seconds for each, and the iterations and hours of the whole training."""
    before = [0, *(epoch.step for epoch in epochs[:-1])]
    each = [epoch.seconds / (epoch.step - start) for epoch, start in zip(epochs, before, strict=True)]
    seconds = median(each[1:] or each)
    total = length(preset, epochs[0].step)
    return epochs[-1].step, seconds, total, total * seconds / 3600


def length(preset: str, iterations_per_epoch: int) -> int:
    """Return how many iterations a preset trains for."""
    sys.path.insert(0, str(EXAMPLES))
    from cardiac.run.presets import PRESETS

    given = PRESETS[preset]
    return given.epochs * iterations_per_epoch if given.iterations is None else given.iterations
