"""Arithmetic of a training step, counted by torch, against what the method needs at least, worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Step
from benchmarks.report import Options, Report, Table
from benchmarks.subjects import CLASSES, MASKERS, bare, trained

GIGA = 1e9


def run(options: Options) -> Report:
    """Count the steps of the paper's network on one image."""
    device, side = torch.device(options.device), 192  # what `by_hand` is for
    size = {"images": 2, "side": side}
    counted = {
        "bare": count(bare(device, **size)) / 2,
        "standard": count(trained(device, kind="standard", **size)) / 2,
        **{
            f"cooperative, {name}": count(trained(device, kind="cooperative", masker=name, **size)) / 2
            for name in MASKERS
        },
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
    return Report([table], drawn="GFLOP", notes=NOTES)


NOTES = (
    "Counted by `torch.utils.flop_counter`: convolutions, two operations for each multiplication with addition. *By "
    "hand*: a forward pass of each network, its gradient by inputs and by weights, each as much again; none by the "
    "images of the first convolution. A saliency costs one gradient by inputs, through the decoder: that of the image "
    "code arrives with the backward pass of the reconstruction anyway. A hard example costs a forward pass of "
    "its decoder.",
)


def count(step: Step) -> int:
    """Return the operations of one step; not the first, which also looks the model over."""
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


# By hand ----------------------------------------------------------------------------------------------------------

WIDTH, DEPTH = 16, 4


def by_hand(side: int) -> dict[str, float]:
    """Work out what each step needs for an image: convolutions only, as everything else is small beside them."""
    encoder, stem = encode(1, side), conv(1, WIDTH, 3, side)
    decoupler = 2 * conv(8 * WIDTH, 8 * WIDTH, 3, side // 2**DEPTH)
    segmentation, image = decode(CLASSES, side), decode(1, side, transposed=True)
    prior, prior_stem = encode(CLASSES, side) + decode(CLASSES, side), conv(CLASSES, WIDTH, 3, side)
    trunk = 3 * (encoder + decoupler + segmentation) - stem
    standard = trunk + 3 * image + 3 * prior + (3 * prior - prior_stem)  # labels need no gradient
    making = segmentation + image  # the two hard examples, forwards
    hard = trunk + 3 * image + 3 * prior + (3 * prior - prior_stem)
    whole = standard + making + hard
    targeted = whole + segmentation  # saliency of the shape code
    return {
        "bare": trunk,
        "standard": standard,
        "cooperative, random channels": whole,
        "cooperative, targeted channels": targeted,
        "cooperative, targeted sites": targeted,
    }


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
