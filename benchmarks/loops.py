"""Loops with a tap: what a step that also trains on a replay of masked codes costs, beside a plain one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.interleaved import apart
from benchmarks.measure import synchronize
from benchmarks.networks import Row
from benchmarks.report import Options, Table
from benchmarks.subjects import CLASSES, batch
from latentaug import CooperativeModel, LatentTap, TargetedChannelMask, cooperative_backward, latent_saliency

LAYERS = [f"encoder[{depth}]" for depth in (2, 3, 4, 5)]
PARTS = ("pass", "saliency", "masks", "replay", "backward")
COLUMNS = ("seconds", "plain steps", *PARTS, "GFLOP", "over plain", "by hand")
FORMATS = {"seconds": "{:.3f}", "GFLOP": "{:.1f}"}
BY_HAND = {"plain": (3, 3), "tap loop": (3, 7), "frugal": (3, 6)}
"""How many forward passes of the encoder, and of all that follows it, a step costs."""

Clock = Callable[[str], Any]
Way = Callable[[Clock], None]


def table(row: Row, options: Options) -> Table:
    """Measure the loops on a U-Net, in a process of its own that keeps large blocks of memory."""
    seconds, gflops, missing = apart(in_process, row, options, threads=options.threads)
    plain = seconds["plain"]
    encoder, decoder, first = gflops["encoder"], gflops["decoder"], gflops["first convolution"]
    expected = {name: e * encoder + d * decoder - first for name, (e, d) in BY_HAND.items()}
    rows: dict[str, tuple[Any, ...]] = {
        name: (median(seconds[name]["all"]), *[None] * (len(COLUMNS) - 4), gflops[name], None, None)
        for name in ("encoder", "decoder")
    }
    for name in BY_HAND:
        if name in missing:
            rows[f"{name}: {missing[name]}"] = (None,) * len(COLUMNS)
            continue
        rows[name] = (
            median(seconds[name]["all"]),
            _over(seconds[name]["all"], plain["all"]),
            *(_over(seconds[name][part], plain["all"]) if part in seconds[name] else None for part in PARTS),
            gflops[name],
            gflops[name] / gflops["plain"],
            expected[name] / expected["plain"],
        )
    return Table(f"loops on {row.name}, {row.size}", COLUMNS, rows, FORMATS)


NOTE = (
    "*Loops*: a training step (forward, loss, backward) of a U-Net. *Tap loop*: `loss(unet(x)) + "
    f"loss(tap.replay(...))` from targeted masks of {LAYERS[0]} to {LAYERS[-1]}; *frugal*: `cooperative_backward` "
    "without heads, from the same codes. *Pass* to *backward* are parts of the step, in plain steps; all take turns in "
    "one process, in the processor's time, or on the clock on a GPU, and medians of each round's quotients count. "
    "*GFLOP* are counted, and *by hand* is their quotient worked out from a forward pass of the encoder, e, and of the "
    "decoder, d: a plain step is 3e + 3d, the tap loop 3e + 7d, as it derives the saliency through the decoder, runs "
    "it again and backpropagates that as well; the frugal step 3e + 6d, as one gradient through the decoder is both "
    "saliency and the encoder's gradient."
)


def _over(values: list[float], plain: list[float]) -> float:
    return median(one / other for one, other in zip(values, plain, strict=True))


def in_process(
    row: Row, options: Options
) -> tuple[dict[str, dict[str, list[float]]], dict[str, float], dict[str, str]]:
    """Return the seconds of each part of each way, by round; their GFLOP; and why a way was not measured."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    unet: Any = row.build().to(device).to(memory_format=torch.channels_last).train()
    images, labels = batch(device, row.shape[0], row.shape[2:], channels=row.shape[1])
    ways: dict[str, Way] = {
        **halves(unet, images),
        "plain": lambda clock: plain(unet, images, labels, clock),
        "tap loop": lambda clock: tap_loop(unet, images, labels, clock),
    }
    missing = {}
    try:
        ways["frugal"] = frugal(unet, images, labels)
    except (TypeError, ValueError) as error:
        missing["frugal"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for number in range(2 + options.repeats):
        for name, way in ways.items():
            taken = _clocked(way, unet, device)
            if number >= 2:
                for part, value in taken.items():
                    seconds[name].setdefault(part, []).append(value)
    gflops = {name: _count(way) for name, way in ways.items()}
    return seconds, {**gflops, "first convolution": _first_convolution(unet, images)}, missing


def plain(unet: nn.Module, images: Tensor, labels: Tensor, clock: Clock) -> None:
    """Train on the images themselves."""
    with clock("pass"):
        loss = F.cross_entropy(unet(images), labels)
    with clock("backward"):
        loss.backward()


def tap_loop(unet: nn.Module, images: Tensor, labels: Tensor, clock: Clock) -> None:
    """Train on a replay from masked codes of four levels as well: what a user writes."""
    masker = TargetedChannelMask()
    with LatentTap(unet, LAYERS) as tap:
        with clock("pass"):
            loss = F.cross_entropy(unet(images), labels)
        with clock("saliency"):
            saliencies = latent_saliency(loss, tap.codes)
        with clock("masks"):
            masked = [masker(code, one).apply(code) for code, one in zip(tap.codes, saliencies, strict=True)]
        with clock("replay"):
            hard_loss = F.cross_entropy(tap.replay(masked), labels)
        with clock("backward"):
            (loss + hard_loss).backward()


def frugal(unet: nn.Module, images: Tensor, labels: Tensor) -> Way:
    """Return the step of a `CooperativeModel` without heads, which computes nothing twice.

    Raises:
        TypeError: The library knows no model without heads.
    """
    options: dict[str, Any] = {"reconstruction": False, "shape_prior": False, "augment": TargetedChannelMask()}
    model = CooperativeModel(unet, num_classes=CLASSES, example=images[:2], codes={"shape": LAYERS}, **options)
    return lambda clock: cooperative_backward(model, images, labels) and None


def halves(unet: Any, images: Tensor) -> dict[str, Way]:
    """Return forward passes of the encoder, and of what follows it."""
    with torch.no_grad():
        features = unet.encoder(images)

    def encode(clock: Clock) -> None:
        unet.encoder(images)

    def decode(clock: Clock) -> None:
        unet.segmentation_head(unet.decoder(features))

    return {"encoder": encode, "decoder": decode}


def _clocked(way: Way, unet: nn.Module, device: torch.device) -> Mapping[str, float]:
    taken: dict[str, float] = {}

    @contextmanager
    def clock(part: str) -> Any:
        start = _now(device)
        yield
        taken[part] = _now(device) - start

    unet.zero_grad()
    gc.collect()
    with clock("all"):
        way(clock)
    return taken


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _count(way: Way) -> float:
    @contextmanager
    def clock(part: str) -> Any:
        yield

    with FlopCounterMode(display=False) as counter:
        way(clock)
    return float(counter.get_total_flops()) / 1e9


def _first_convolution(unet: nn.Module, images: Tensor) -> float:
    """Return the GFLOP of the convolution that sees the images, which no gradient is derived by."""
    first = next(module for module in unet.modules() if isinstance(module, nn.Conv2d))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        first(images)
    return float(counter.get_total_flops()) / 1e9
