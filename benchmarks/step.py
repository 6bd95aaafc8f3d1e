"""Time and memory of a training step: bare, standard and cooperative, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from benchmarks.measure import Measured, Subject, take_turns
from benchmarks.report import Options, Report, Table
from benchmarks.subjects import MASKERS, authors, bare, bare_unet, trained, trained_unet

COLUMNS = ("seconds", "spread", "over bare", "over standard", "peak GB")
FORMATS = {"spread": "± {:.0%}"}


def run(options: Options) -> Report:
    """Measure at the paper's batch of 20 and at 4, with each mask alone, on a U-Net, and the authors' code if given."""
    if options.quick:
        return Report([_table("batch 2, 32²", steps(2, 32, options), options)], drawn="seconds", notes=NOTES)
    tables = [
        _table("the paper's network, batch 20, 192²", steps(20, 192, options), options),
        _table("the paper's network, batch 4, 192²", steps(4, 192, options), options),
        _table("each mask alone, batch 20, 192²", masks(20, 192), options),
        _table("variants, batch 20, 192²", variants(20, 192, options), options),
        _table("smp Unet resnet34, batch 8, 192²", unets(8, 192), options),
    ]
    return Report(tables, drawn="seconds", notes=NOTES)


def steps(images: int, side: int, options: Options) -> dict[str, Subject]:
    """Return steps of the paper's network, and of the authors' code."""
    size = {"images": images, "side": side}
    subjects = {
        "bare": Subject(partial(bare, **size), tune=False),
        "bare, large blocks kept": Subject(partial(bare, **size)),
        "standard": Subject(partial(trained, kind="standard", **size)),
        "cooperative": Subject(partial(trained, kind="cooperative", **size)),
        "cooperative, allocator as it is": Subject(partial(trained, kind="cooperative", **size), tune=False),
    }
    if options.authors is not None:
        path = str(options.authors)
        for kind in ("standard", "cooperative"):
            subjects[f"authors' {kind}"] = Subject(partial(authors, path=path, kind=kind, **size), tune=False)
    return subjects


def masks(images: int, side: int) -> dict[str, Subject]:
    """Return cooperative steps with one kind of mask each."""
    size = {"images": images, "side": side}
    standard = Subject(partial(trained, kind="standard", **size))
    masked = {name: Subject(partial(trained, kind="cooperative", masker=name, **size)) for name in MASKERS}
    return {"standard": standard, **masked}


def variants(images: int, side: int, options: Options) -> dict[str, Subject]:
    """Return cooperative steps in other layouts and precisions."""
    step = partial(trained, kind="cooperative", images=images, side=side)
    subjects = {
        "cooperative": Subject(step),
        "contiguous": Subject(partial(step, channels_last=False)),
        "bfloat16": Subject(partial(step, precision=torch.bfloat16)),
    }
    if torch.device(options.device).type == "cuda":
        subjects["compiled"] = Subject(partial(step, compiled=True))
    return subjects


def unets(images: int, side: int) -> dict[str, Subject]:
    """Return steps of a U-Net from a library."""
    size = {"images": images, "side": side}
    return {
        "bare": Subject(partial(bare_unet, **size), tune=False),
        "standard": Subject(partial(trained_unet, kind="standard", **size)),
        "cooperative": Subject(partial(trained_unet, kind="cooperative", **size)),
    }


NOTES = (
    "Every subject has a process of its own, and they take turns; medians of wall time, and half the range of the "
    "middle half. *Bare* is plain PyTorch: encoder, decoupler, segmentation decoder, cross entropy and Adam, "
    "contiguous, with the allocator as it is. The others are `channels_last`, and call `tune_allocator` on a CPU, as "
    "the cardiac example does. *bfloat16* is autocast to it, which changes the numbers. Peak: most bytes over those "
    "before the first step, resident ones on a CPU.",
)


def _table(title: str, subjects: Mapping[str, Subject], options: Options) -> Table:
    measured = take_turns(subjects, device=options.device, threads=options.threads, repeats=options.repeats)
    rows = {
        name: (one.median, one.spread, _over("bare", one, measured), _over("standard", one, measured), one.peak / 1e9)
        for name, one in measured.items()
    }
    return Table(title, COLUMNS, rows, FORMATS)


def _over(yardstick: str, one: Measured, measured: Mapping[str, Measured]) -> float | None:
    return one.median / measured[yardstick].median if yardstick in measured else None
