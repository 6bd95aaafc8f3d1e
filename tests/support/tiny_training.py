"""What the trainer's tests train: a tiny network that draws random numbers, on images whose loader draws them too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.training.callbacks import Callback
from latentaug.training.trainer import CooperativeTrainer


class TinyNet(nn.Module):
    """A code at stride 4 with dropout and batch normalisation behind it, in 2-D or 3-D."""

    def __init__(self, num_classes: int = 3, spatial_dims: int = 2) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        transposed = (nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial_dims - 2]
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[spatial_dims - 2]
        self.encoder = nn.Sequential(conv(1, 4, 4, 4), norm(4), nn.ReLU())
        self.decoder = nn.Sequential(nn.Dropout(0.2), transposed(4, num_classes, 4, 4))

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))


class Squares(Dataset):
    """Bright squares on a dark ground, jittered by every random stream there is."""

    def __init__(self, length: int = 6, num_classes: int = 3, size: tuple[int, ...] = (8, 8)) -> None:
        self.length, self.num_classes, self.size = length, num_classes, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        jitter = (float(torch.rand(())) + random.random() + np.random.rand()) / 30  # noqa: NPY002
        label = index % max(self.num_classes, 2)
        labels = torch.zeros(self.size, dtype=torch.long)
        labels[: 4 + index % 3] = label
        return (labels[None] / max(self.num_classes - 1, 1) * 0.9 + jitter).float(), labels


def squares(batch_size: int = 2, num_workers: int = 0, shuffle: bool = True, **dataset: Any) -> DataLoader:
    return DataLoader(Squares(**dataset), batch_size=batch_size, shuffle=shuffle, num_workers=num_workers)


def tiny_coop(num_classes: int = 3, spatial_dims: int = 2, **options: Any) -> CooperativeModel:
    torch.manual_seed(0)
    net = TinyNet(num_classes, spatial_dims)
    example = torch.rand(2, 1, *(8,) * spatial_dims)
    heads = {"reconstruction": True, "shape_prior": True, "hard": HardExamples(every=1)} | options
    return CooperativeModel(net, num_classes=num_classes, example=example, codes="encoder", **heads)


def headless_coop() -> CooperativeModel:
    """Make one without an image decoder and a shape prior, which take four fifths of a step's time."""
    return tiny_coop(reconstruction=False, shape_prior=False)


def tiny_trainer(model: nn.Module | None = None, **options: Any) -> CooperativeTrainer:
    settings = {"seed": 1, "callbacks": []} | options
    return CooperativeTrainer(tiny_coop() if model is None else model, **settings)


class Wrapper(nn.Module):
    """Stands for DDP, whose gradients may not arrive before the call returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.forward = module.forward


class At(Callback):
    """Calls something once, after a given update."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step(self, trainer: Any, losses: Any) -> None:
        if trainer.global_step == self.step:
            self.action(trainer)


def update(trainer: CooperativeTrainer, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Update the weights once, as `fit` does."""
    group = [trainer._checked(batch) for batch in batches]
    return trainer._updates(trainer.model, group, trainer._position)


def weights_of(trainer: CooperativeTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
