"""Speed of the cardiac example's batches, augmentation included, against the step that they feed."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.measure import alone, timed
from benchmarks.report import Options, Report, Table
from benchmarks.subjects import trained

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(options: Options) -> Report:
    """Make batches of the paper's size, and of half its resolution."""
    torch.set_num_threads(options.threads)
    rows = {}
    for side, images in ((32, 4),) if options.quick else ((192, 20), (96, 20)):
        build = partial(trained, kind="cooperative", images=images, side=side)
        step = alone(build, device=options.device, threads=options.threads, repeats=options.repeats)
        seconds = batch_seconds(torch.device(options.device), side, images, options.repeats)
        rows[f"batch {images}, {side}²"] = (seconds * 1e3, images / seconds, seconds / step.median)
    columns = ("milliseconds", "images per second", "over a step")
    formats = {"milliseconds": "{:.0f}", "images per second": "{:.0f}", "over a step": "{:.1%}"}
    return Report([Table("training batches", columns, rows, formats)], drawn="milliseconds")


def batch_seconds(device: torch.device, side: int, images: int, repeats: int) -> float:
    """Return the median time of a training batch, from volumes of noise in memory."""
    sys.path.insert(0, str(EXAMPLES))
    from cardiac.data.readers import Frame
    from study.data.batches import TrainingBatches

    random, margin = np.random.default_rng(0), side * 7 // 6
    frames = [
        Frame(
            patient=str(number),
            phase="ED",
            image=random.random((10, margin, margin), dtype=np.float32),
            labels=random.integers(0, 4, (10, margin, margin), dtype=np.uint8),
            spacing=(10.0, 1.4, 1.4),
        )
        for number in range(4)
    ]
    batches = TrainingBatches(
        frames, side=side, batch_size=images, length=repeats + 2, seed=0, epoch=lambda: 0, device=device
    )
    numbers = iter(range(repeats + 2))
    return median([timed(lambda: batches.batch(next(numbers)), device) for _ in range(repeats + 2)][2:])
