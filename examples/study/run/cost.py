"""What a training step costs in steps of the network alone, measured where it trains and before it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from latentaug import CooperativeModel
from study.data.batches import Batch
from study.data.frame import DataError
from study.methods import METHODS
from study.methods.augmentations import AUGMENTATIONS
from study.methods.network import Network
from study.run.files import write_text
from study.run.outputs import read_json
from study.run.presets import Preset

FILE = "cost.json"
ROUNDS, STEPS = 3, 4
"""A dozen steps of either kind, one after the other in turn. A round has as many as a method may take to come back to
the same work: `cooperative-saliency-every-4` does in four."""
WARM_UP = 2

Step = Callable[[Tensor, Tensor], object]
P = TypeVar("P", bound=Preset)


def kept_cost(folder: Path, measure: Callable[[], float]) -> float:
    """Return the cost that a training was begun with; measure it, and keep it, where it was not begun.

    Raises:
        DataError: what was kept is damaged.
    """
    file = folder / FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, f'{{"cost": {measure():.3f}}}\n')
    cost = read_json(file).get("cost")
    if not isinstance(cost, int | float) or not cost > 0:
        raise DataError(f"{file}: holds no cost of a step. Remove {folder}, to start over.")
    return float(cost)


def in_equal_time(preset: P, iterations: int, cost: float) -> tuple[P, int]:
    """Return preset and iterations of a training that takes as long as `iterations` of the network alone.

    The warm-up shrinks with the iterations. A step is not taken to be cheaper than the network's alone: what is
    measured below 1 is noise.

    Example:
        >>> preset, iterations = in_equal_time(Preset(warm_up=50), 3000, 2.0)
        >>> preset.warm_up, iterations
        (25, 1500)
    """
    share = 1 / max(cost, 1.0)
    warm_up = None if preset.warm_up is None else max(1, round(preset.warm_up * share))
    return replace(preset, warm_up=warm_up), max(1, round(iterations * share))


def measure_cost(method: str, network: Network, preset: Preset, batch: Batch, device: torch.device) -> float:
    """Return the time of a method's training step over that of the network alone.

    The network alone takes its pass, its loss, the backward pass, and the optimizer's step. The method takes what its
    training takes, augmentation of the images included. Both are of networks made for this, on the same batch, and
    PyTorch's random streams are left as they were: what is trained later does not see it.

    Args:
        method: One of `METHODS`.
        network: What is trained.
        preset: Sizes, precision and augmentation.
        batch: Images without further augmentation, and their labels.
        device: Where to train.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = (
            network.build(preset, METHODS[method].arguments).to(device).to(memory_format=torch.channels_last).train()
        )
        steps = [
            _plain_step(deepcopy(model.model), model.loss, preset, device),
            _own_step(method, model, preset, device),
        ]
        for _ in range(WARM_UP):
            for step in steps:
                step(*batch)
        return median(_round(steps, batch, device) for _ in range(ROUNDS))


def _round(steps: Sequence[Step], batch: Batch, device: torch.device) -> float:
    """Take several steps of two kinds in turn; return what the second kind takes over the first."""
    seconds = [0.0, 0.0]
    for _ in range(STEPS):
        for kind, step in enumerate(steps):
            _wait_for(device)
            started = time.perf_counter()
            step(*batch)
            _wait_for(device)
            seconds[kind] += time.perf_counter() - started
    return seconds[1] / seconds[0]


def _plain_step(
    network: nn.Module, loss: Callable[[Any, Tensor], Tensor], preset: Preset, device: torch.device
) -> Step:
    optimizer = torch.optim.Adam(network.parameters(), lr=preset.learning_rate, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(preset, device):
            found = loss(network(images), labels)
        found.backward()
        optimizer.step()

    return step


def _own_step(method: str, model: CooperativeModel, preset: Preset, device: torch.device) -> Step:
    chosen, augment = METHODS[method], AUGMENTATIONS[preset.augment]
    if chosen.prepare is not None:
        chosen.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step(images: Tensor, labels: Tensor) -> None:
        images = images if augment is None else augment(images, generator)
        optimizer.zero_grad(set_to_none=True)
        with _autocast(preset, device):
            chosen.backward(model, images, labels, generator=generator)
        optimizer.step()

    return step


def _autocast(preset: Preset, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16, enabled=preset.precision == "bfloat16")


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
