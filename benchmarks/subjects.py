"""What is measured: bare, standard and cooperative steps of the paper's network and of a U-Net from a library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Step
from latentaug import FTN, CooperativeModel, cooperative_backward, standard_backward

CLASSES = 4


def batch(device: torch.device, images: int, side: int) -> tuple[Tensor, Tensor]:
    """Draw images and labels that look like neither: what a step costs does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (images, side // 8, side // 8), generator=generator)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    noise = torch.rand(images, 1, side, side, generator=generator)
    return (labels[:, None] / CLASSES + noise / CLASSES).to(device), labels.to(device)


def bare(device: torch.device, *, images: int, side: int) -> Step:
    """Train the paper's segmentation network in plain PyTorch: a cross entropy and Adam, nothing of this library's."""
    network = FTN(num_classes=CLASSES)
    del network.image_decoder
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    inputs, labels = batch(device, images, side)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()

    return step


BACKWARD = {"standard": standard_backward, "cooperative": cooperative_backward}


def trained(device: torch.device, *, kind: str, images: int, side: int, channels_last: bool = True) -> Step:
    """Train the paper's network and shape prior by a standard or a cooperative step, as the example does."""
    return _training_step(device, FTN(num_classes=CLASSES), kind, images, side, channels_last)


def _training_step(
    device: torch.device, network: nn.Module, kind: str, images: int, side: int, channels_last: bool, **options: Any
) -> Step:
    inputs, labels = batch(device, images, side)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = CooperativeModel(network, num_classes=CLASSES, example=inputs[:2].cpu(), **options)
    model.to(device, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        BACKWARD[kind](model, inputs, labels, generator=generator)
        optimizer.step()

    return step
