"""What the tests of this folder train: a small network, images with their labels, and a Trainer that says nothing."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from latentaug import CooperativeModel, HardExamples
from latentaug.integrations.lightning import CooperativeModule


class UNet(nn.Module):
    """One skip connection, with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.top = nn.Conv2d(8, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        return self.top(torch.cat([stem, self.up(self.down(stem))], 1))


def network() -> UNet:
    torch.manual_seed(0)
    return UNet()


def samples(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (count, 2, 2), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return labels.unsqueeze(1) + 0.3 * torch.randn(count, 1, 16, 16, generator=generator), labels


def loader(count: int = 8, lost: int | None = None) -> DataLoader[Any]:
    images, labels = samples(count)
    if lost is not None:
        images[lost, 0, 3, 3] = torch.nan
    return DataLoader(TensorDataset(images, labels), batch_size=2)


def cooperative(**options: Any) -> CooperativeModel:
    given: dict[str, Any] = {"num_classes": 2, "hard": HardExamples(every=2), "image_range": None} | options
    return CooperativeModel(network(), example=samples(2)[0], **given)


SAFELY = {"weights_only": True} if "weights_only" in inspect.signature(Trainer.fit).parameters else {}
"""How a checkpoint is read without running code, where Lightning can be told so."""
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def module(coop: CooperativeModel | None = None, **options: Any) -> CooperativeModule:
    return CooperativeModule(coop or cooperative(), options.pop("optimizer", SGD), **options)


class Seeds(Callback):
    """Seeds the global stream anew for each batch, otherwise on each rank."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(seed_of(trainer.current_epoch, batch_idx, trainer.global_rank))


def seed_of(epoch: int, batch: int, rank: int = 0) -> int:
    return 1000 * epoch + 10 * batch + rank


def trainer(folder: Path | None = None, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_checkpointing": False, "callbacks": [Seeds()]}
    return Trainer(default_root_dir=folder, **quiet | given | options)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
