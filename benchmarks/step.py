"""What a training step costs in plain ones: the network alone is the yardstick of every variant."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from benchmarks.interleaved import KEPT, Taken, apart, spread, take_turns_in_process
from benchmarks.measure import Step
from benchmarks.networks import LITTLE, LITTLE_UNETS, STEPPED, Row
from benchmarks.parts import fractions
from benchmarks.report import Options, Report, Table
from benchmarks.variants import PLAIN, VARIANTS, Mode, Variant, build

COLUMNS = ("CPU s", "wall s", "plain steps", "spread", "allocator as it comes", "peak GB", "plain peaks")
FORMATS = {"CPU s": "{:.3f}", "wall s": "{:.3f}", "spread": "± {:.0%}", "peak GB": "{:.3f}"}
AGREE = 0.1
"""Largest relative difference of a cost with the allocator as it comes at which it is shown as well."""


@dataclass
class Measured:
    """What was measured of a network in one mode.

    Args:
        taken: By variant, with large blocks kept.
        fresh: The same with the allocator as it comes; empty where that was not measured.
        skipped: Why a variant was not measured.
        parts: Fraction of the default step by its part.
    """

    taken: dict[str, Taken] = field(default_factory=dict)
    fresh: dict[str, Taken] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)

    def cost(self, name: str, device: torch.device, *, fresh: bool = False) -> float | None:
        """Return how many plain steps a variant costs."""
        taken = self.fresh if fresh else self.taken
        if name not in taken or PLAIN not in taken:
            return None
        return median(taken[name].over(taken[PLAIN], device))

    def memory(self, name: str) -> float | None:
        """Return the peak of a variant over the plain step's."""
        if name not in self.taken or PLAIN not in self.taken:
            return None
        return self.taken[name].peak / self.taken[PLAIN].peak


def run(options: Options) -> Report:
    """Measure every network in every mode; eager float32 first, in case that time runs out."""
    device = torch.device(options.device)
    networks = [*LITTLE_UNETS, *LITTLE] if options.quick else STEPPED
    networks = [row for row in networks if options.networks.lower() in row.name.lower()]
    left = deadline(options.seconds)
    found: dict[tuple[str, str], Measured] = {}
    for together in modes(options):
        for row in networks:
            for mode, one in measured(row, together, options, left).items():
                found[row.name, mode] = one
                print(_progress(row, mode, one, device), file=sys.stderr, flush=True)
    usual = {row: found[row.name, str(Mode())] for row in networks}
    costs = {_named(row): _all_costs(one, device) for row, one in usual.items()}
    peaks = {_named(row): tuple(one.memory(name) for name in VARIANTS) for row, one in usual.items()}
    by_name = {row.name: row for row in networks}
    tables = [
        Table("plain steps", ("plain s", *VARIANTS), costs, {"plain s": "{:.3f}"}),
        Table("peak memory over a plain step's", (*VARIANTS,), peaks),
        *(_details(by_name[name], mode, one, device) for (name, mode), one in found.items()),
        *(_where(row, one, device) for row, one in usual.items() if one.parts),
    ]
    return Report(tables, drawn="default", notes=[*NOTES, *_reasons(found)])


NOTES = (
    "A step is forward, loss and backward, without an optimizer. *Plain* is the network alone with its cross entropy; "
    "the others are `cooperative_backward` of a `CooperativeModel` made as `benchmarks/variants.py` says. All have the "
    "same weights and images, are `channels_last` in 2-D, and take turns in one process. Costs are medians of the "
    "quotients of each round, in the processor's time, or on the clock on a GPU; *spread* is half the range of their "
    "middle half.",
    "Large blocks of memory are kept, by the plain step and the others alike. *Allocator as it comes*: the same costs "
    "with malloc as the system has it, in a process of their own; shown only where it agrees within a tenth.",
    "*Peak*: most bytes that a step allocates at a time, over what is held as it begins: weights and the batch.",
    "*Where the time goes*: from a profile of the default step; a backward operation belongs to the part that computed "
    "its forward one. *Pass* is the network's own forward pass, *saliency* what is derived apart from the backward "
    "pass, *rest* what is in no part.",
)


def modes(options: Options) -> list[list[Mode]]:
    """Return how steps are computed, those together that share a process.

    In float32, on a GPU in bfloat16 as well; compiled too on a GPU, or if asked for, each by itself.
    """
    cuda = torch.device(options.device).type == "cuda"
    eager = [Mode(), Mode(torch.bfloat16)] if cuda else [Mode()]
    compiled = [Mode(one.precision, compiled=True) for one in eager] if cuda or options.compiled else []
    return [eager, *([one] for one in compiled)]


def names(options: Options) -> list[str]:
    """Return what is measured: all variants; the main ones on a GPU, which may be had for minutes only, and quickly."""
    main = options.quick or torch.device(options.device).type == "cuda"
    return [PLAIN, "default", "two passes, shape prior"] if main else [PLAIN, *VARIANTS]


def deadline(seconds: float | None) -> Callable[[], float | None]:
    """Return what tells how many seconds are left; None for as many as it takes."""
    end = time.monotonic() + (seconds or 0)
    return lambda: None if seconds is None else end - time.monotonic()


# In a process of its own ------------------------------------------------------------------------------------------


def measured(row: Row, together: list[Mode], options: Options, left: Callable[[], float | None]) -> dict[str, Measured]:
    """Measure a network in processes of their own: one that keeps large blocks, and on the CPU one that doesn't."""

    def ask(kept: int) -> dict[str, Measured]:
        seconds = left()
        if seconds is not None and seconds < 5:
            raise TimeoutError("No time was left.")
        answer: dict[str, Measured] = apart(
            in_process, row, together, options, kept > 0, threads=options.threads, kept=kept, seconds=seconds
        )
        return answer

    cpu = torch.device(options.device).type == "cpu"
    try:
        found = ask(KEPT)
    except (TimeoutError, RuntimeError) as error:
        skipped = dict.fromkeys(names(options), first_line(error))
        return {str(mode): Measured(skipped=skipped) for mode in together}
    if cpu and not together[0].compiled:
        with suppress(TimeoutError):
            for mode, one in ask(0).items():
                found[mode].fresh = one.taken
    return found


def in_process(row: Row, together: list[Mode], options: Options, parts: bool) -> dict[str, Measured]:
    """Measure a network's variants in some modes, one mode after the other."""
    return {str(mode): _in_turns(row, mode, options, parts) for mode in together}


def _in_turns(row: Row, mode: Mode, options: Options, parts: bool) -> Measured:
    """Build every variant that there is, let them take turns, and look where the time of the default goes."""
    device = torch.device(options.device)
    built: dict[str, Variant] = {}
    skipped: dict[str, str] = {}
    for name in names(options):
        try:
            built[name] = build(row, name, device, mode)
            _run_first(built[name].step, row, name, device, mode)
        except Exception as error:
            built.pop(name, None)
            skipped[name] = first_line(error)
    steps: dict[str, Step] = {name: variant.step for name, variant in built.items()}
    taken = take_turns_in_process(steps, device, options.repeats)
    taken = {name: one.shared(built[name].count) for name, one in taken.items()}
    default = built.get("default")
    if not parts or device.type != "cpu" or mode.compiled or default is None or default.model is None:
        return Measured(taken, {}, skipped)
    return Measured(taken, {}, skipped, fractions(default.model, default.step))


def _run_first(step: Step, row: Row, name: str, device: torch.device, mode: Mode) -> None:
    """Run the first step; compiled, see that it computes what it does otherwise."""
    loss = float(step())
    if not mode.compiled:
        return
    expected = float(build(row, name, device, Mode(mode.precision)).step())
    if abs(loss - expected) > 0.02 * abs(expected):
        raise ValueError(f"compiled, the loss is {loss:.4f}, and {expected:.4f} otherwise")


def first_line(error: BaseException) -> str:
    """Say what went wrong in one line."""
    said = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
    return text.replace("|", "/")[:200]


# Tables -----------------------------------------------------------------------------------------------------------


def _named(row: Row) -> str:
    return f"{row.name}, {row.size}"


def _all_costs(one: Measured, device: torch.device) -> tuple[float | None, ...]:
    plain = one.taken.get(PLAIN)
    return (
        None if plain is None else median(plain.seconds(device)),
        *(one.cost(name, device) for name in VARIANTS),
    )


def _details(row: Row, mode: str, one: Measured, device: torch.device) -> Table:
    rows: dict[str, tuple[Any, ...]] = {}
    for name, taken in one.taken.items():
        over = taken.over(one.taken[PLAIN], device) if PLAIN in one.taken else None
        rows[name] = (
            median(taken.cpu),
            median(taken.wall),
            one.cost(name, device),
            None if over is None else spread(over),
            _agreeing(one, name, device),
            taken.peak / 1e9,
            one.memory(name),
        )
    rows |= {f"{name}: not measured": (None,) * len(COLUMNS) for name in one.skipped}
    return Table(f"{_named(row)}, {mode}", COLUMNS, rows, FORMATS)


def _agreeing(one: Measured, name: str, device: torch.device) -> float | None:
    kept, fresh = one.cost(name, device), one.cost(name, device, fresh=True)
    return fresh if kept is not None and fresh is not None and abs(fresh - kept) <= AGREE * kept else None


def _where(row: Row, one: Measured, device: torch.device) -> Table:
    cost = one.cost("default", device)
    rows = {name: (part, None if cost is None else part * cost) for name, part in one.parts.items()}
    return Table(
        f"where the time of the default goes, {_named(row)}",
        ("of the step", "plain steps"),
        rows,
        {"of the step": "{:.1%}"},
    )


def _reasons(found: Mapping[tuple[str, str], Measured]) -> Iterator[str]:
    said: dict[str, list[str]] = {}
    for (network, mode), one in found.items():
        for name, reason in one.skipped.items():
            said.setdefault(f"*{name}* was not measured ({reason})", []).append(f"{network} in {mode}")
    yield from (f"{reason}: {'; '.join(places)}." for reason, places in said.items())


def _progress(row: Row, mode: str, one: Measured, device: torch.device) -> str:
    costs = {name: one.cost(name, device) for name in one.taken}
    shown = ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items() if cost is not None)
    return f"{_named(row)}, {mode}: {shown or next(iter(one.skipped.values()), 'nothing')}"
