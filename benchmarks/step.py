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
    side = 32 if options.quick else 192
    tables = []
    for images in (2,) if options.quick else (20, 4):
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
        tables.append(_table(f"the paper's network, batch {images}, {side}²", subjects, options))
    size = {"images": 2 if options.quick else 20, "side": side}
    masked = {
        "standard": Subject(partial(trained, kind="standard", **size)),
        **{name: Subject(partial(trained, kind="cooperative", masker=name, **size)) for name in MASKERS},
    }
    tables.append(_table(f"each mask alone, batch {size['images']}, {side}²", masked, options))
    variants = {
        "cooperative": Subject(partial(trained, kind="cooperative", **size)),
        "contiguous": Subject(partial(trained, kind="cooperative", channels_last=False, **size)),
        "bfloat16": Subject(partial(trained, kind="cooperative", precision=torch.bfloat16, **size)),
    }
    if torch.device(options.device).type == "cuda":
        variants["compiled"] = Subject(partial(trained, kind="cooperative", compiled=True, **size))
    tables.append(_table(f"variants, batch {size['images']}, {side}²", variants, options))
    size = {"images": 2 if options.quick else 8, "side": 64 if options.quick else 192}
    unet = {
        "bare": Subject(partial(bare_unet, **size), tune=False),
        "standard": Subject(partial(trained_unet, kind="standard", **size)),
        "cooperative": Subject(partial(trained_unet, kind="cooperative", **size)),
    }
    tables.append(_table(f"smp Unet resnet34, batch {size['images']}, {size['side']}²", unet, options))
    return Report(tables, drawn="seconds", notes=NOTES)


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
