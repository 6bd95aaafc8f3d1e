"""How much harder do a U-Net's segmentations get when its skip connections are masked along with its bottleneck?

Trains a U-Net on cardiac MR without hard examples, then masks its latent codes on patients it never saw: one depth at
a time, and the bottleneck together with more and more of the skips. Prints the Dice of what the masked codes decode to,
with targeted masks that rank by each of their scores: mean and spread over masks.

    cd examples
    python -m cardiac.run.masked_depths
    python -m cardiac.run.masked_depths --acdc DIR --iterations 600
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal, TypeAlias, get_args

import segmentation_models_pytorch as smp
import torch
from torch import nn

from cardiac.data.phantom import cached_phantom
from cardiac.data.readers import STRUCTURES
from cardiac.run.presets import PRESETS
from cardiac.run.study import Sources, Study
from latentaug import CooperativeModel, paper_masks, segmentation_loss, tune_allocator
from study.data.batches import Batch, TrainingBatches, validation_batches
from study.data.frame import DataError
from study.run.hardness import dice_of, dice_of_masked

Score: TypeAlias = Literal["signed", "magnitude", "harm"]
SCORES: tuple[Score, ...] = get_args(Score)
DEPTHS = range(5, 0, -1)
"""Outputs of the encoder that carry a code: the bottleneck, at stride 32, and the skips up to stride 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--acdc", type=Path, metavar="DIR", help="ACDC, as released or preprocessed; without it a phantom is generated")
    add("--iterations", type=int, default=300, metavar="N", help="optimizer steps (default: %(default)s)")
    add("--repeats", type=int, default=5, metavar="N", help="times that masks are drawn (default: %(default)s)")
    add("--image-size", type=int, default=192, metavar="N", help="side of the crop, then halved (default: %(default)s)")
    options = parser.parse_args(arguments)
    tune_allocator()
    torch.manual_seed(0)
    try:
        preset = replace(PRESETS["quick"], image_size=options.image_size, iterations=options.iterations)
        study = Study(Sources(options.acdc or cached_phantom()[0], None, {}), preset)
        unet = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1 + len(STRUCTURES))
        train(unet, study, options.iterations)
        unet.eval()
        volumes = validation_batches(study.validation(0), preset.side)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Dice without masks: {dice_of(unet, volumes):.3f}\n")
    print(f"| masked | {' | '.join(SCORES)} |\n|{' --- |' * (1 + len(SCORES))}")
    for layers in layer_sets():
        cells = [hard_dice(unet, layers, score, volumes, options.repeats) for score in SCORES]
        print(f"| {', '.join(f'`{name}`' for name in layers)} | {' | '.join(cells)} |", flush=True)
    return 0


def train(unet: nn.Module, study: Study, iterations: int) -> None:
    """Train on a cross entropy alone, on the batches that the cardiac example has."""
    preset = study.preset
    batches = TrainingBatches(
        study.training(0), side=preset.side, batch_size=preset.batch_size, length=iterations, seed=0, epoch=int
    )
    optimizer = torch.optim.Adam(unet.parameters(), lr=preset.learning_rate)
    for step, (images, labels) in enumerate(batches, 1):
        loss = segmentation_loss(unet(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} of {len(batches)}: cross entropy {loss.item():.3f}", file=sys.stderr)


def layer_sets() -> Iterator[list[str]]:
    """Name the codes that are masked together: the bottleneck with more and more skips, then each skip by itself."""
    names = [f"encoder[{depth}]" for depth in DEPTHS]
    yield from (names[:count] for count in range(1, len(names) + 1))
    yield from ([name] for name in names[1:])


def hard_dice(unet: nn.Module, layers: list[str], score: Score, volumes: Sequence[Batch], repeats: int) -> str:
    """Return mean and spread of the Dice of the segmentations that masked codes at `layers` decode to."""
    coop = CooperativeModel(
        unet, num_classes=1 + len(STRUCTURES), example=volumes[0][0][:2], codes=layers, augment=paper_masks(score)
    )
    values = [dice_of_masked(coop, volumes, seed=seed)[1] for seed in range(repeats)]
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if repeats > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
