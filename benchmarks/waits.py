"""Waits for the device: whether a training step makes the host wait for what an accelerator computes."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import latentaug
from benchmarks.measure import Step
from benchmarks.networks import LITTLE, LITTLE_UNETS, UNETS, Row
from benchmarks.report import Options, Report, Table
from benchmarks.step import first_line
from benchmarks.variants import PLAIN, VARIANTS, build

STEPS = 5
"""Steps that are looked at, as what is drawn differs from one to the next."""
PACKAGE = Path(latentaug.__file__).parent


def run(options: Options) -> Report:
    """Look at every variant of a U-Net and of the paper's network, after it has warmed up."""
    device = torch.device(options.device)
    networks = [*LITTLE_UNETS, *LITTLE] if options.quick else [UNETS[0], *LITTLE]
    rows = {
        f"{row.name}, {row.size}: {name}": look(row, name, device) for row in networks for name in (PLAIN, *VARIANTS)
    }
    table = Table("waits for the device", ("waits", "where"), rows, {"waits": "{:.0f}"})
    found = [name for name, (waits, _) in rows.items() if waits]
    return Report(
        [table], drawn="waits", notes=NOTES, failed=f"{', '.join(found)} made the host wait" if found else None
    )


NOTES = (
    f"In {STEPS} steps after two that warm up, under `torch.cuda.set_sync_debug_mode('error')`, which ends at the "
    "first wait. On a CPU the steps run, but there is nothing to wait for.",
)


def look(row: Row, name: str, device: torch.device) -> tuple[float | None, str]:
    """Return how often a variant waits, and where; or None, and why it does not run."""
    try:
        step = build(row, name, device).step
        step()
        step()
    except Exception as error:
        return None, first_line(error)
    if device.type != "cuda":
        return None, "nothing to wait for"
    places = first_wait(step)
    return len(places), ", ".join(places)


def first_wait(step: Step) -> list[str]:
    """Return where a step first makes the host wait for a GPU; an empty list if it never does."""
    try:
        with forbidden():
            for _ in range(STEPS):
                step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return [place(traceback.extract_tb(error.__traceback__))]
    return []


@contextmanager
def forbidden() -> Iterator[None]:
    """Raise where the host waits for a GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def place(stack: traceback.StackSummary) -> str:
    """Name the innermost line of the library in a stack, or of anything if it has none."""
    frames = [frame for frame in stack if Path(frame.filename).is_relative_to(PACKAGE)] or stack[-1:]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}"
