"""Time what a tap costs, and what replays save, on networks and images of realistic size."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import loops
from benchmarks.measure import synchronize
from benchmarks.networks import LITTLE, LITTLE_UNETS, ROWS, TRAINED, UNETS, Row
from benchmarks.report import Options, Report, Table
from latentaug import CooperativeModel, LatentTap, TargetedChannelMask, latent_saliency, tune_allocator

COLUMNS = (
    "images",
    "layer",
    "forward ms",
    "tapped",
    "tap ms",
    "replay",
    "full replay",
    "saliency",
    "masked",
    "in full",
)
ATTACHING = (
    "images",
    "forward ms",
    "named s",
    "named",
    "found s",
    "found",
    "cooperative s",
    "cooperative",
)
FORMATS = {"forward ms": "{:.0f}", "tapped": "{:.3f}", "tap ms": "{:.1f}"} | dict.fromkeys(ATTACHING[3::2], "{:.1f}")


def run(options: Options) -> Report:
    """Measure every row, one after the other, in this process."""
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        tune_allocator(2**30)  # fresh pages cost more, and more unevenly, than all that is compared here
    rows = {row.name: measure(row, options) for row in (ROWS[-1:] if options.quick else ROWS)}
    attaching = {
        f"{row.name}, batch of {row.shape[0]}": attach(row, options)
        for row in (LITTLE if options.quick else [*TRAINED, *ROWS])
    }
    tables = [
        Table("network", COLUMNS, rows, FORMATS),
        *(loops.table(row, options) for row in (LITTLE_UNETS if options.quick else UNETS)),
        Table("attaching", ATTACHING, attaching, FORMATS),
    ]
    return Report(tables, drawn="replay", notes=NOTES)


NOTES = (
    "Ratios, in train mode and float32. *Tapped*: a forward pass with entering and leaving the tap, over a plain one. "
    "*Tap ms*: how much more of the time that is, Python's for the most part, whatever the size of the images. "
    "*Replay*, *full replay*: from a masked code, over a plain forward pass. *Saliency*: a training step that also "
    "derives its loss by the code, over a plain step; *masked*, *in full*: that with the backward pass of a masked "
    "replay added. Each repetition runs every measurement once, and the least time counts: of the CPU, or on the clock "
    "on a GPU.",
    "*Attaching*: what comes once. How much longer the first tapped pass takes than a plain one, with a layer that is "
    "*named* and with one that is *found*; and the making of a *cooperative* model, heads included. In seconds and in "
    "forward passes of the same batch; medians, each on a copy of the network that no tap has seen.",
    loops.NOTE,
)


# Measuring --------------------------------------------------------------------------------------------------------


def measure(row: Row, options: Options) -> tuple[Any, ...]:
    """Return the columns of a row."""
    model, images = prepared(row, options)
    runs = measurements(model, images)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            seconds[name].append(run())
    least = {name: min(times) for name, times in seconds.items()}
    return (
        "x".join(map(str, row.shape)),
        f"`{layer_of(model, images)}`",
        least["plain"] * 1e3,
        least["tapped"] / least["plain"],
        (least["tapped"] - least["plain"]) * 1e3,
        *(least[name] / least["plain"] for name in ("replay", "full replay")),
        *(least[name] / least["step"] for name in ("saliency", "masked", "in full")),
    )


def attach(row: Row, options: Options) -> tuple[Any, ...]:
    """Return the columns of a row: what is done once."""
    model, images = prepared(row, options)
    layer = str(layer_of(copy.deepcopy(model), images))
    ways: dict[str, Callable[[nn.Module], Any]] = {
        "named": lambda copied: tapped(copied, images, layer),
        "found": lambda copied: tapped(copied, images),
        "cooperative": lambda copied: CooperativeModel(copied, num_classes=4, example=images),
    }
    plain: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            plain.append(timed(lambda: model(images), images.device))
            copied = copy.deepcopy(model)
            seconds[name].append(timed(functools.partial(way, copied), images.device))
    forward = median(plain)
    once = {name: median(times) - (name != "cooperative") * forward for name, times in seconds.items()}
    shape = "x".join(map(str, row.shape))
    return shape, forward * 1e3, *(value for taken in once.values() for value in (taken, taken / forward))


def prepared(row: Row, options: Options) -> tuple[nn.Module, Tensor]:
    """Build a network in train mode, and images; both have been through a few steps."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model, images = row.build().to(device).train(), torch.rand(row.shape).to(device)
    for _ in range(2):
        objective(model(images)).backward()
    model.zero_grad()
    return model, images


def measurements(model: nn.Module, images: Tensor) -> dict[str, Callable[[], float]]:
    """Return what is measured, by name: each runs once and returns its seconds."""
    masker = TargetedChannelMask(0.5, 0.5, score="magnitude")
    device = images.device

    def replay(full: bool) -> float:
        with LatentTap(model) as tap:
            model(images)
            return timed(lambda: tap.replay(tap.code * 0.5, full=full), device)

    def step(replays: bool = False, full: bool = False) -> None:
        with LatentTap(model) as tap:
            loss = objective(model(images))
            saliency = latent_saliency(loss, tap.code)
            if replays:
                mask = masker(tap.code, saliency, layout=tap.layout)
                loss = loss + objective(tap.replay(mask.apply(tap.code), full=full))
            loss.backward()

    return {
        "plain": lambda: timed(lambda: model(images), device),
        "tapped": lambda: timed(lambda: tapped(model, images), device),
        "replay": lambda: replay(full=False),
        "full replay": lambda: replay(full=True),
        "step": lambda: timed(lambda: objective(model(images)).backward(), device),
        "saliency": lambda: timed(step, device),
        "masked": lambda: timed(lambda: step(replays=True), device),
        "in full": lambda: timed(lambda: step(replays=True, full=True), device),
    }


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Return the CPU time of a run, or the time on the clock where another device works."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def tapped(model: nn.Module, images: Tensor, layer: str | None = None) -> None:
    with LatentTap(model, layer):
        model(images)


def layer_of(model: nn.Module, images: Tensor) -> Any:
    with LatentTap(model) as tap:
        model(images)
        return tap.layers[0]


def objective(output: Any) -> Tensor:
    """Return a loss over the logits: the output itself, the first of a list or what it calls by a name."""
    if isinstance(output, dict):
        output = output["out"] if "out" in output else output["logits"]
    logits: Tensor = output[0] if isinstance(output, list) else output
    labels = torch.zeros(len(logits), *logits.shape[2:], dtype=torch.long, device=logits.device)
    return nn.functional.cross_entropy(logits, labels)
