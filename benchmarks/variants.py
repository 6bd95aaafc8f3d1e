"""What a network is trained with: the plain step that is the yardstick, and `CooperativeModel` in several forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Step
from benchmarks.networks import Row
from benchmarks.subjects import CLASSES, batch, compile_parts
from latentaug import CooperativeModel, HardExamples, cooperative_backward

PLAIN = "plain"
PAPER = {"every": 1, "noise": 0.05, "separate": False, "separate_decoder": False}
"""How hard examples are made, and learned from, in the paper."""
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "image decoder": {"reconstruction": True, "hard": {"mix": 0.5}},
    "shape prior": {"shape_prior": True},
    "every batch": {"hard": {"every": 1}},
    "two passes": {"reconstruction": True, "hard": {"every": 1}},
    "two passes, shape prior": {"reconstruction": True, "shape_prior": True, "hard": PAPER},
    "the same, every third batch": {"reconstruction": True, "shape_prior": True, "hard": PAPER | {"every": 3}},
    "the same, half the batch": {"reconstruction": True, "shape_prior": True, "hard": PAPER | {"fraction": 0.5}},
}
"""Arguments of `CooperativeModel` by the names of the columns; those of "hard" are arguments of `HardExamples`."""


@dataclass(frozen=True)
class Mode:
    """How a step is computed.

    Args:
        precision: What autocast is set to; None for none.
        compiled: Whether the networks are compiled.
    """

    precision: torch.dtype | None = None
    compiled: bool = False

    def __str__(self) -> str:
        """Name it, as in "bfloat16, compiled"."""
        precision = "float32" if self.precision is None else str(self.precision).removeprefix("torch.")
        return f"{precision}, compiled" if self.compiled else precision


@dataclass(frozen=True)
class Variant:
    """A step that is built: what runs and returns a loss, the model if there is one, and how many steps it runs."""

    step: Step
    model: CooperativeModel | None = None
    count: int = 1


def build(row: Row, name: str, device: torch.device, mode: Mode = Mode()) -> Variant:
    """Build a variant of a network's step: forward, loss and backward. It returns its loss.

    Every variant has the same weights and images, and is `channels_last` in 2-D.

    Raises:
        TypeError: The library knows no such argument.
        ValueError: The library takes no such value of one.
    """
    torch.manual_seed(0)
    network = row.build().to(device).train()
    images, labels = batch(device, row.shape[0], row.shape[2:], channels=row.shape[1])
    if name == PLAIN:
        return Variant(_plain(_placed(network, row), images, labels, mode))
    given = arguments(VARIANTS[name])
    model = CooperativeModel(network, num_classes=CLASSES, example=images[:2], **given)
    count = model.maker.every
    return Variant(_cooperative(_placed(model, row), images, labels, mode, count), model, count)


def arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Make arguments of `CooperativeModel` of a row of `VARIANTS`."""
    return {name: HardExamples(**value) if name == "hard" else value for name, value in given.items()}


def _placed(model: nn.Module, row: Row) -> Any:
    return model.to(memory_format=torch.channels_last) if len(row.shape) == 4 else model


def _plain(network: nn.Module, images: Tensor, labels: Tensor, mode: Mode) -> Step:
    if mode.compiled:
        network.compile()

    def step() -> Tensor:
        network.zero_grad()
        with _autocast(images, mode):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        return loss.detach()

    return step


def _cooperative(model: CooperativeModel, images: Tensor, labels: Tensor, mode: Mode, count: int) -> Step:
    if mode.compiled:
        compile_parts(model)
    generator = torch.Generator().manual_seed(0)

    def step() -> Tensor:
        for _ in range(count):
            model.zero_grad()
            with _autocast(images, mode):
                loss: Tensor = cooperative_backward(model, images, labels, generator=generator).loss
        return loss

    return step


def _autocast(images: Tensor, mode: Mode) -> torch.autocast:
    return torch.autocast(images.device.type, mode.precision, enabled=mode.precision is not None)
