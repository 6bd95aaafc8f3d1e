"""Arithmetic of a training step, counted by torch, against what the method needs at least, worked out by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Step
from benchmarks.networks import LITTLE_UNETS, STEPPED, Row
from benchmarks.report import Options, Report, Table
from benchmarks.subjects import CLASSES, MASKERS, Size, bare, trained
from benchmarks.variants import PLAIN, VARIANTS, build
from latentaug import HardExamples

GIGA = 1e9


def run(options: Options) -> Report:
    """Count the steps of the paper's network on one image."""
    device, side = torch.device(options.device), 64 if options.quick else 192
    size = Size(images=2, side=side)
    counted = {
        "bare": count(bare(device, **size)) / 2,
        "standard": count(trained(device, kind="standard", **size)) / 2,
        **{
            f"cooperative, {name}": count(trained(device, kind="cooperative", masker=name, **size)) / 2
            for name in MASKERS
        },
        **{name: count_option(device, name, **size) for name in OPTIONS},
    }
    needed = by_hand(side)
    rows = {
        name: (flops / GIGA, needed[name] / GIGA, flops / counted["bare"], flops / counted["standard"])
        for name, flops in counted.items()
    }
    columns = ("GFLOP", "by hand", "over bare", "over standard")
    table = Table(
        f"one image of {side}², forward and backward", columns, rows, {"GFLOP": "{:.3f}", "by hand": "{:.3f}"}
    )
    wrapped = LITTLE_UNETS if options.quick else [row for row in STEPPED if not row.name.startswith("FTN")]
    over_plain = {f"{row.name}, {row.size}": over_plain_step(row, device) for row in wrapped}
    steps = Table("wrapped networks, in plain steps", tuple(VARIANTS), over_plain)
    return Report([table, steps], drawn="GFLOP", notes=NOTES)


def over_plain_step(row: Row, device: torch.device) -> tuple[float, ...]:
    """Return the operations of each form of a step of a network, over those of the network alone."""
    counted = {}
    for name in (PLAIN, *VARIANTS):
        variant = build(row, name, device)
        counted[name] = count(variant.step) / variant.count
    return tuple(counted[name] / counted[PLAIN] for name in VARIANTS)


NOTES = (
    "Counted by `torch.utils.flop_counter`: convolutions, two operations for each multiplication with addition. *By "
    "hand*: a forward pass of each network, its gradient by inputs and by weights, each as much again; none by the "
    "images of the first convolution. A saliency costs one gradient by inputs, through the decoder: that of the image "
    "code arrives with the backward pass of the reconstruction anyway. A hard example costs a forward pass of "
    "its decoder. The options, which change the numbers, are those of a step with targeted channels.",
    "The steps of wrapped networks are those of `python -m benchmarks step`, which times them.",
)

OPTIONS: dict[str, dict[str, Any]] = {
    "saliency every 4th batch": {"hard": HardExamples(saliency_every=4)},
    "hard examples of half the batch": {"hard": HardExamples(fraction=0.5)},
    "hard examples at half the side": {"hard": HardExamples(scale=0.5)},
    "all three": {"hard": HardExamples(saliency_every=4, fraction=0.5, scale=0.5)},
}
"""Options of `CooperativeModel` that make a step cheaper and change its numbers."""


def count_option(device: torch.device, name: str, *, images: int, side: int) -> float:
    """Return the operations for an image, the mean of four steps with one of `OPTIONS`."""
    size = Size(images=images, side=side)
    step = trained(device, kind="cooperative", masker="targeted channels", options=OPTIONS[name], **size)
    return count(step, steps=4) / 4 / images


def count(step: Step, steps: int = 1) -> int:
    """Return the operations of a step, or several; not of the first, which also looks the model over."""
    step()
    with FlopCounterMode(display=False) as counter:
        for _ in range(steps):
            step()
    return int(counter.get_total_flops())


# By hand ----------------------------------------------------------------------------------------------------------

WIDTH, DEPTH = 16, 4


def by_hand(side: int) -> dict[str, float]:
    """Work out what each step needs for an image: convolutions only, as everything else is small beside them."""
    segmentation, image = decode(CLASSES, side), decode(1, side, transposed=True)
    standard = losses(side)
    making = segmentation + image  # the two hard examples, forwards
    whole = standard + making + losses(side)
    targeted = whole + segmentation  # saliency of the shape code
    # Segmentations are replayed for the whole batch, as is all that comes before the hard losses.
    half = standard + segmentation + segmentation + (image + losses(side)) / 2
    small = standard + making + segmentation + losses(side // 2)
    return {
        "bare": trunk(side),
        "standard": standard,
        "cooperative, random channels": whole,
        "cooperative, targeted channels": targeted,
        "cooperative, targeted sites": targeted,
        "saliency every 4th batch": whole + segmentation / 4,
        "hard examples of half the batch": half,
        "hard examples at half the side": small,
        "all three": standard + segmentation + segmentation / 4 + (image + losses(side // 2)) / 2,
    }


def expected(kind: str, side: int) -> float:
    """Return what a kind of step needs for an image; a cooperative one in the mean over the paper's masks."""
    needed = by_hand(side)
    names = [f"cooperative, {name}" for name in MASKERS] if kind == "cooperative" else [kind]
    return sum(needed[name] for name in names) / len(names)


def trunk(side: int) -> float:
    """Count encoder, decoupler and segmentation decoder, forwards and backwards."""
    decoupler = 2 * conv(8 * WIDTH, 8 * WIDTH, 3, side // 2**DEPTH)
    return 3 * (encode(1, side) + decoupler + decode(CLASSES, side)) - conv(1, WIDTH, 3, side)


def losses(side: int) -> float:
    """Count the four standard losses, or the four hard ones: trunk, image decoder, and the shape prior twice."""
    image, prior = decode(1, side, transposed=True), encode(CLASSES, side) + decode(CLASSES, side)
    return trunk(side) + 3 * image + 6 * prior - conv(CLASSES, WIDTH, 3, side)  # labels need no gradient


def conv(inputs: int, outputs: int, kernel: int, side: int) -> float:
    """Count a square convolution whose result has `side`² sites."""
    return 2.0 * inputs * outputs * kernel**2 * side**2


def encode(channels: int, side: int) -> float:
    """Count a forward pass of the encoder: a stem, blocks at half the side each, and a projection."""
    total = conv(channels, WIDTH, 3, side) + conv(WIDTH, WIDTH, 3, side)
    widths = [min(2**level, 8) * WIDTH for level in range(DEPTH)] + [8 * WIDTH]
    for narrow, wide in pairwise(widths):
        side //= 2
        total += conv(narrow, narrow, 3, side) + block(narrow, wide, side)
    return total + conv(8 * WIDTH, 8 * WIDTH, 1, side)


def decode(channels: int, side: int, transposed: bool = False) -> float:
    """Count a forward pass of a decoder: blocks at twice the side each, and a projection."""
    total, at = 0.0, side // 2**DEPTH
    widths = [max(8 // 2**level, 1) * WIDTH for level in range(DEPTH + 1)]
    for wide, narrow in pairwise(widths):
        total += conv(wide, wide, 2, at) if transposed else 0
        at *= 2
        total += block(wide, narrow, at)
    return total + conv(WIDTH, channels, 1, side)


def block(inputs: int, outputs: int, side: int) -> float:
    """Count a residual block: two convolutions, and the one that fits the shortcut."""
    return conv(inputs, outputs, 3, side) + conv(outputs, outputs, 3, side) + conv(inputs, outputs, 1, side)
