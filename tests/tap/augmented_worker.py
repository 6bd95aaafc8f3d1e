"""One rank of a test in `test_augmented.py`: python augmented_worker.py RANK WORLD_SIZE FOLDER writes gradients."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from latentaug import GIN, ManifoldMixup, MixStyle, RandomChannelMask, augmented
from tests.models.handwritten.unets import FunctionalUNet

CASES: dict[str, dict[str, Any]] = {
    "style": {"enc1": MixStyle(p=1), "enc2": MixStyle(p=0.5, per_sample=True)},
    "mask and noise": {"enc1": RandomChannelMask(), "bottom": GIN()},
    "mixup": {"bottom": ManifoldMixup(), "enc1": MixStyle(p=1)},
}
STEPS = 2


def unet() -> nn.Module:
    torch.manual_seed(0)
    return FunctionalUNet().double()


def gradients(model: nn.Module, case: str, rank: int, number: int) -> dict[str, Tensor]:
    """Run one step on images, and with changes, of this rank's own."""
    generator = torch.Generator().manual_seed(100 + 10 * rank + number)
    images = torch.randn(3, 3, 16, 16, generator=generator).double()
    labels = torch.randint(2, (3, 16, 16), generator=generator)
    model.zero_grad()
    with augmented(model, CASES[case], generator=generator) as run:
        run.loss(nn.functional.cross_entropy, model(images), labels).backward()
    return {name.removeprefix("module."): weight.grad.clone() for name, weight in model.named_parameters()}


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    results = {}
    for case in CASES:
        model = DistributedDataParallel(unet())
        for number in range(STEPS):
            results[case, number] = gradients(model, case, rank, number)
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
