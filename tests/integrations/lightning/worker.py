"""Two processes of Lightning's: python worker.py FOLDER writes what each of them has trained."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from latentaug import CooperativeModel, HardExamples
from latentaug.integrations.lightning import CooperativeModule
from tests.integrations.lightning.parts import UNet, loader, module, samples, trainer, weights

RANKS = 2
CASES: dict[str, dict[str, Any]] = {
    "automatic": {},
    "frugal": {"frugal": True},
    "frugal, accumulated": {"frugal": True, "accumulate": 2, "clip_norm": 0.5},
    "frugal, unused on one rank": {"frugal": True},
    "frugal, lost on one rank": {"frugal": True},
}
LOST = 7
"""The sample that is not finite in the cases that lose one."""


class OfOneRank(UNet):
    """A part of it is used by one of two ranks only, and another one by none."""

    def __init__(self) -> None:
        super().__init__()
        self.some, self.none = nn.Conv2d(1, 1, 3, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.some(images) if os.environ.get("LOCAL_RANK") == "1" else images)


def case(name: str) -> CooperativeModule:
    torch.manual_seed(0)
    unused = "unused" in name
    network = OfOneRank() if unused else UNet()
    options: dict[str, Any] = {"weights": {"hard_code_segmentation": 0.0}} if unused else {"shape_prior": True}
    example, hard = samples(2)[0], HardExamples(every=2)
    coop = CooperativeModel(network, num_classes=2, example=example, hard=hard, image_range=None, **options)
    return module(coop, **CASES[name])


def main(folder: Path) -> None:
    warnings.filterwarnings("ignore")
    for name in CASES:
        trained = case(name)
        run = trainer(max_epochs=2, devices=RANKS, strategy=DDPStrategy(process_group_backend="gloo"))
        run.fit(trained, loader(12, lost=LOST if "lost" in name else None), loader(6))  # three batches a rank
        metrics = {name: float(value) for name, value in run.callback_metrics.items()}
        rank = int(os.environ.get("LOCAL_RANK", 0))
        torch.save({"weights": weights(trained.coop), "metrics": metrics}, folder / f"{name} {rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
