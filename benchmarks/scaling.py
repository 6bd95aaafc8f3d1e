"""How a cooperative step scales: with batch, image side, threads and ranks, over many steps, and in 3-D."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from benchmarks import memory
from benchmarks.measure import Measured, Step, Subject, alone, peak_since, start_peak, take_turns, timed
from benchmarks.report import Options, Report, Table
from benchmarks.subjects import cooperative_model, trained, trained_volume, training_step, volume_model
from latentaug import FTN

COLUMNS = ("seconds", "peak GB", "exponent of time", "exponent of memory")


def run(options: Options) -> Report:
    """Measure along each axis."""
    quick = options.quick
    batches, sides = ((2, 4), (32, 64)) if quick else ((5, 10, 20), (96, 128, 192))
    whole = partial(trained, kind="cooperative")
    tables = [
        _table(
            f"batch, {sides[-1]}²",
            {n: partial(whole, images=n, side=sides[-1]) for n in batches},
            options,
        ),
        _table(
            f"pixels, batch {batches[0]}", {s * s: partial(whole, images=batches[0], side=s) for s in sides}, options
        ),
        _threads(options, batches[0], sides[-1]),
        _ranks(options, batches[0], sides[-1]),
        _steps(options),
        _volumes(options),
        _kept(options),
    ]
    return Report(tables, drawn="seconds", notes=NOTES)


NOTES = (
    "Exponents: of the power of batch or pixels that a value grows by, from a row to the next; 1 is linear.",
    "1,000 steps are of a small network on small images; memory is the process' own, over that after ten steps.",
    "*Larger blocks kept*: `tune_allocator(2**30)`; all other rows have `tune_allocator()`, which keeps up to 32 MiB.",
    "*Checkpointed*: each block of the U-Net and of the two heads is computed again in the backward pass. *Kept* is "
    "what one forward pass of all standard losses holds for its backward pass, weights excepted; "
    "`cooperative_backward` holds the network's part and one branch at a time; *at most* is what it allocates.",
)


def _table(title: str, builds: Mapping[int, partial[Step]], options: Options) -> Table:
    """Measure sizes in turn, and tell the exponents from one to the next."""
    subjects = {str(size): Subject(build) for size, build in builds.items()}
    measured = take_turns(subjects, device=options.device, threads=options.threads, repeats=options.repeats)
    rows = {}
    before: tuple[int, Measured] | None = None
    for size, one in zip(builds, measured.values(), strict=True):
        exponents: tuple[float | None, float | None] = (None, None)
        if before is not None:
            growth = math.log(size / before[0])
            exponents = (
                math.log(one.median / before[1].median) / growth,
                math.log(one.peak / before[1].peak) / growth,
            )
        rows[f"{size:,}"] = (one.median, one.peak / 1e9, *exponents)
        before = size, one
    return Table(title, COLUMNS, rows)


def _threads(options: Options, images: int, side: int) -> Table:
    """Measure one thread, and all of them."""
    build = partial(trained, kind="cooperative", side=side)
    rows = {}
    for threads in sorted({1, options.threads}):
        one = alone(partial(build, images=images), device=options.device, threads=threads, repeats=options.repeats)
        rows[f"{threads} threads"] = (one.median, one.peak / 1e9)
    return Table(f"threads, batch {images}, {side}²", ("seconds", "peak GB"), rows)


def _ranks(options: Options, images: int, side: int) -> Table:
    """Give each of one and two ranks a whole batch and the same threads, under DistributedDataParallel."""
    threads = max(1, options.threads // 2)
    rows = {}
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (world, Path(folder), options.device, threads, images, side, options.repeats)
            spawn(_rank, arguments, nprocs=world)
            rows[f"{world} ranks"] = (median(json.loads((Path(folder) / "seconds.json").read_text())),)
    return Table(f"ranks of {threads} threads, batch {images} each, {side}²", ("seconds",), rows)


def _rank(rank: int, world: int, folder: Path, device: str, threads: int, images: int, side: int, repeats: int) -> None:
    """Time steps on one rank, and let the first write them down."""
    torch.set_num_threads(threads)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
    where = torch.device(device, rank) if backend == "nccl" else torch.device(device)
    model, inputs, labels = cooperative_model(where, FTN(num_classes=4), images, (side, side))
    wrapped = nn.parallel.DistributedDataParallel(model.to(memory_format=torch.channels_last))
    step = training_step(wrapped, inputs, labels, "cooperative")
    seconds = [timed(step, where) for _ in range(2 + repeats)][2:]
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))
    distributed.destroy_process_group()


def _steps(options: Options) -> Table:
    """Take many steps, and look at what the process holds now and then."""
    device, count = torch.device(options.device), 30 if options.quick else 1000
    model, inputs, labels = cooperative_model(device, FTN(num_classes=4, width=4, depth=3), 4, (32, 32))
    step = training_step(model, inputs, labels, "cooperative")
    rows, base = {}, 0
    for number in range(1, count + 1):
        step()
        if number == 10:
            base = start_peak(device)
        if number in {10, max(10, count // 10), count // 2, count}:
            rows[f"{number} steps"] = (peak_since(base, device) / 1e6,)
    return Table("steps", ("peak MB",), rows, {"peak MB": "{:.1f}"})


def _volumes(options: Options) -> Table:
    """Measure a 3-D U-Net on one cubic patch."""
    sides = (32,) if options.quick else (64, 96, 128)
    rows: dict[str, tuple[float, float]] = {}
    for side in sides:
        build = partial(trained_volume, side=side)
        subjects = {
            "standard": Subject(partial(build, kind="standard")),
            "cooperative": Subject(partial(build, kind="cooperative")),
            "cooperative, checkpointed": Subject(partial(build, kind="cooperative", checkpointed=True)),
        }
        if options.device == "cpu":
            subjects["cooperative, larger blocks kept"] = Subject(partial(build, kind="cooperative"), kept=2**30)
        if options.quick:  # one stands for all
            subjects = {"cooperative": subjects["cooperative"]}
        measured = take_turns(subjects, device=options.device, threads=options.threads, repeats=2, warmup=1)
        rows |= {f"{kind}, {side}³": (one.median, one.peak / 1e9) for kind, one in measured.items()}
    return Table("MONAI UNet 3-D, one patch", ("seconds", "peak GB"), rows)


def _kept(options: Options) -> Table:
    """Say where the memory of a 3-D step goes, without and with checkpointing."""
    device, side = torch.device(options.device), 32 if options.quick else 64
    found = []
    for checkpointed in (False, True):
        model, inputs, labels = volume_model(device, side=side, checkpointed=checkpointed)
        peak, *_ = memory.follow(training_step(model, inputs, labels, "cooperative"), device)
        found.append({**memory.kept(model, inputs, labels), "cooperative step, at most": peak})
    rows = {part: tuple(sizes[part] / 1e9 for sizes in found) for part in found[0]}
    columns = ("GB", "checkpointed, GB")
    return Table(f"kept for the backward pass, one patch of {side}³", columns, rows, dict.fromkeys(columns, "{:.3f}"))
