"""Timing and memory: subjects that live in processes of their own and take turns."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from latentaug import tune_allocator

Step = Callable[[], Any]
"""What is timed: takes nothing, and all it needs is there already."""


@dataclass(frozen=True)
class Subject:
    """Something to time in a process of its own.

    Args:
        build: Makes the step, given the device; a function of a module, or a `partial` of one.
        kept: Bytes of the largest block that malloc keeps, as `tune_allocator` has it; 0 leaves malloc as it is.
        flops: Operations of a step, where known.
        precision: What most of them are computed in.
    """

    build: Callable[[torch.device], Step]
    kept: int = 2**25
    flops: float | None = None
    precision: torch.dtype = torch.float32


@dataclass(frozen=True)
class Measured:
    """What was measured of a subject.

    Args:
        seconds: Wall time of each timed step.
        peak: Most bytes that the process held over what it held before its first step: resident ones on the CPU,
            allocated ones on an accelerator.
    """

    seconds: list[float]
    peak: int

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the range that holds the middle half of the seconds, as a share of the median."""
        ordered = sorted(self.seconds)
        quarter = len(ordered) // 4
        return (ordered[-1 - quarter] - ordered[quarter]) / 2 / self.median


def take_turns(
    subjects: Mapping[str, Subject], *, device: str, threads: int, repeats: int, warmup: int = 2
) -> dict[str, Measured]:
    """Run one step of every subject after another, over and over, and return what each step took.

    Each subject has a process of its own, so that neither memory nor the allocator's settings of one reach another,
    and they take turns, so that whatever else the machine does meanwhile reaches all alike. Those that don't run sleep.
    """
    workers = {name: _Worker(subject, device, threads) for name, subject in subjects.items()}
    try:
        for _ in range(warmup):
            for worker in workers.values():
                worker.ask("step")
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(repeats):
            for name, worker in workers.items():
                seconds[name].append(worker.ask("step"))
        return {name: Measured(seconds[name], int(worker.ask("peak"))) for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.stop()


def alone(build: Callable[[torch.device], Step], *, device: str, threads: int, repeats: int) -> Measured:
    """Measure a subject by itself, in a process of its own."""
    return take_turns({"alone": Subject(build)}, device=device, threads=threads, repeats=repeats)["alone"]


def largest(fits: Callable[[int], bool], limit: int = 2**14) -> int:
    """Find the largest number, up to `limit`, that fits, to within a sixteenth; 0 if 1 doesn't.

    Example:
        >>> largest(lambda n: n <= 100)
        100
    """
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > max(1, good // 16) and good < limit:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def fits(build: Callable[[torch.device], Step], device: torch.device) -> bool:
    """Tell whether an accelerator has the memory for a step, with the optimizer's part of it."""
    step: Step | None = None
    try:
        step = build(device)
        step()
        step()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        step = None  # frees what it holds
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator to finish; nothing on the CPU."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


class _Worker:
    """A process that builds a subject and runs it when told to."""

    def __init__(self, subject: Subject, device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, subject, device, threads), daemon=True)
        self._process.start()
        there.close()
        self.ask("build")

    def ask(self, what: str) -> float:
        self._pipe.send(what)
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("A benchmark's process ended; its own message is above.") from None
        if isinstance(answer, BaseException):
            raise answer
        return float(answer)

    def stop(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, subject: Subject, device: str, threads: int) -> None:
    """Answer "build", "step" with its seconds and "peak" with the bytes, until the pipe is closed."""
    gc.disable()  # what it would find belongs to no step in particular
    torch.set_num_threads(threads)
    if subject.kept and device == "cpu":
        tune_allocator(subject.kept)
    where = torch.device(device)
    step: Step | None = None
    base = 0
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        try:
            if what == "build":
                torch.manual_seed(0)
                step = subject.build(where)
                base = start_peak(where)
                pipe.send(0.0)
            elif what == "step":
                assert step is not None
                gc.collect()
                pipe.send(timed(step, where))
            else:
                pipe.send(float(peak_since(base, where)))
        except Exception as error:
            pipe.send(error)


def timed(step: Step, device: torch.device) -> float:
    """Return the seconds that one step takes on the clock, with the accelerator's share of it."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


# Memory -----------------------------------------------------------------------------------------------------------


def start_peak(device: torch.device) -> int:
    """Forget the highest level of memory so far, and return the present one."""
    if device.type != "cpu":
        backend = getattr(torch, device.type)
        backend.reset_peak_memory_stats(device)
        return int(backend.memory_allocated(device))
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not on Linux, or not allowed to: the peak of the process' whole life has to do
        return _resident("peak")
    return _resident("now")


def peak_since(base: int, device: torch.device) -> int:
    """Return the bytes that were held at most, over `base`."""
    highest = _resident("peak") if device.type == "cpu" else getattr(torch, device.type).max_memory_allocated(device)
    return int(highest) - base


def _resident(which: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    field = {"now": "VmRSS:", "peak": "VmHWM:"}[which]
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
