"""Steps that take turns in one process: how many plain ones each of them costs."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from benchmarks.measure import Step, peak_since, start_peak, synchronize
from benchmarks.memory import follow
from latentaug import tune_allocator

KEPT = 2**30
"""Bytes of the largest block that malloc keeps: more than any tensor of these steps has."""


@dataclass(frozen=True)
class Taken:
    """What a step took in each round.

    Args:
        wall: Seconds on the clock.
        cpu: Seconds of the processor, of all threads of the process.
        peak: Most bytes that the step allocates at a time, over what is held as it begins.
    """

    wall: list[float]
    cpu: list[float]
    peak: int = 0

    def shared(self, count: int) -> Taken:
        """Return what each of `count` steps took that ran one after the other."""
        return Taken([one / count for one in self.wall], [one / count for one in self.cpu], self.peak)

    def seconds(self, device: torch.device) -> list[float]:
        """Return what counts on a device: the processor's time, or the clock where another device works."""
        return self.cpu if device.type == "cpu" else self.wall

    def over(self, plain: Taken, device: torch.device) -> list[float]:
        """Return how many plain steps each round's step cost: of the same round, and so under the same load."""
        pairs = zip(self.seconds(device), plain.seconds(device), strict=True)
        return [one / other for one, other in pairs]


def spread(values: list[float]) -> float:
    """Return half the range of the middle half of the values, as a share of their median."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return (ordered[-1 - quarter] - ordered[quarter]) / 2 / median(values)


def take_turns_in_process(
    steps: Mapping[str, Step], device: torch.device, repeats: int, *, warmup: int = 1
) -> dict[str, Taken]:
    """Run every step once in each round, first those that warm up, and then look at what each allocates."""
    taken = {name: Taken([], []) for name in steps}
    gc.disable()  # what it would find belongs to no step in particular
    try:
        for number in range(warmup + repeats):
            for name, step in steps.items():
                wall, cpu = clocked(step, device)
                if number >= warmup:
                    taken[name].wall.append(wall)
                    taken[name].cpu.append(cpu)
    finally:
        gc.enable()
    return {name: Taken(one.wall, one.cpu, allocated(steps[name], device)) for name, one in taken.items()}


def clocked(step: Step, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a step on the clock, and those of the processor."""
    gc.collect()
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def allocated(step: Step, device: torch.device) -> int:
    """Return the most bytes that a step allocates at a time, over what is held as it begins."""
    if device.type == "cpu":
        return follow(step, device)[0]
    base = start_peak(device)
    step()
    return peak_since(base, device)


# A process of its own ---------------------------------------------------------------------------------------------


def apart(
    function: Callable[..., Any],
    *arguments: Any,
    threads: int,
    kept: int = KEPT,
    seconds: float | None = None,
) -> Any:
    """Call a function in a fresh process, and return what it returns.

    Args:
        function: A function of a module.
        arguments: Its arguments.
        threads: CPU threads of the process.
        kept: Bytes of the largest block that malloc keeps there; 0 leaves malloc as it comes, whatever the environment
            of this process says.
        seconds: When to end it; None waits for as long as it takes.

    Raises:
        TimeoutError: It was not done by then.
        RuntimeError: The process ended before.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_call, args=(there, function, arguments, threads, kept), daemon=True)
    with _without_malloc_settings():
        process.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise TimeoutError(f"It was not done after {seconds:.0f} s.")
        answer = here.recv()
    except EOFError:
        raise RuntimeError("A benchmark's process ended; its own message is above.") from None
    finally:
        process.terminate()
        process.join()
        here.close()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _call(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], threads: int, kept: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    if kept:
        tune_allocator(kept)
    try:
        pipe.send(function(*arguments))
    except Exception as error:  # which may not be one that can be sent
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


@contextmanager
def _without_malloc_settings() -> Iterator[None]:
    """Leave out of the environment, for a process that starts now, what malloc would read there."""
    names = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]
    held = {name: os.environ.pop(name) for name in names}
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # profiles are taken there, and would be spoken of in every line
    try:
        yield
    finally:
        os.environ.update(held)
