"""Time of the maskers, against the cooperative step that they are a part of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.measure import alone, timed
from benchmarks.report import Options, Report, Table
from benchmarks.subjects import MASKERS, trained
from latentaug import LatentTransform, RandomApply, paper_masks

REPEATS = 200


def run(options: Options) -> Report:
    """Mask a code of the paper's size, its saliency given."""
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    images, side = (2, 32) if options.quick else (20, 192)
    build = partial(trained, kind="cooperative", images=images, side=side)
    step = alone(build, device=options.device, threads=options.threads, repeats=options.repeats)
    code, saliency = torch.randn(2, images, 128, side // 16, side // 16, device=device)
    maskers: dict[str, LatentTransform] = {name: masker() for name, masker in MASKERS.items()}
    maskers |= {"paper_masks()": paper_masks(), "RandomApply(paper_masks())": RandomApply(paper_masks())}
    rows = {}
    for name, masker in maskers.items():
        seconds = _median(partial(_masked, masker, code, saliency), device)
        rows[name] = (seconds * 1e6, 2 * seconds / step.median)
    columns = ("microseconds", "share of a step")
    shape = " x ".join(map(str, code.shape))
    table = Table(
        f"a mask of a code {shape}, and its product", columns, rows, {columns[0]: "{:.0f}", columns[1]: "{:.2%}"}
    )
    return Report([table], drawn="microseconds", notes=NOTES)


NOTES = (
    "Medians of 200. A step draws two masks: of the image code, and of the shape code. What saliencies cost is no part "
    "of this: see `flops.md`.",
)


def _masked(masker: LatentTransform, code: torch.Tensor, saliency: torch.Tensor) -> Any:
    return masker(code, saliency).apply(code)


def _median(run: Callable[[], Any], device: torch.device) -> float:
    for _ in range(20):
        run()
    return median(timed(run, device) for _ in range(REPEATS))
