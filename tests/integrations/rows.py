"""One row of the matrix: a model from somewhere, and what must be found in it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.layout import CHANNELS_FIRST, Layout
from tests.models.case import Case
from tests.support.random_streams import seed_all
from tests.support.trees import leaves

TINY = 1e-3  # layer scales and gates start below this, and let no signal through


@dataclass(frozen=True, kw_only=True)
class Row(Case):
    """A model, where its bottleneck is, and how to train it.

    Args:
        library: Heading under which the table lists it.
        name: What the table calls it; no two rows of a library are alike.
        code: Shape of the code at the bottleneck, for images of `shape`.
        layout: Where the channels are in it.
        classes: Channels of the logits.
        logits: Reads the logits from the output, where the library's own readers can't.
        quick: Whether it is the row of its library that plain `pytest` runs.
        paired: Whether it pairs parts that rows before it have, each with others: its code is found and replayed as
            theirs, but it is neither trained nor mixed nor asked for other layers.
        wake: Whether the weights are drawn anew, so that signal reaches the end of an untrained model.
        timed: Shape of the images that replays are timed on for the table. Default: 128 x 128, or `shape` in 3-D.
    """

    library: str
    name: str
    code: tuple[int, ...]
    layout: Layout = CHANNELS_FIRST
    classes: int = 2
    logits: Callable[[Any], Any] | None = None
    quick: bool = False
    paired: bool = False
    wake: bool = True
    timed: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.library} {self.name}"

    def model(self, train: bool) -> nn.Module:
        """Build it; the same weights every time, and statistics that fit the images."""
        return copy.deepcopy(_built(self)).train(train)

    def known(self, train: bool) -> nn.Module:
        """Return one model to several checks in a mode, its buffers as built: what taps proved is not proved anew."""
        model, built = _known(self, train), dict(_built(self).named_buffers())
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if not torch.equal(buffer, built[name]):  # else a graph that was kept would not know it any more
                    buffer.copy_(built[name])
        return model

    def large_images(self) -> Tensor:
        """Draw the images that replays are timed on, in float32."""
        batch, channels, *size = self.shape
        shape = self.timed or ((batch, channels, 128, 128) if len(size) == 2 else self.shape)
        return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@functools.lru_cache(maxsize=1)  # drawing weights takes longer than most checks, which run row by row
def _built(row: Row) -> nn.Module:
    model = Case.model(row, True)
    if row.wake:
        wake(model)
    settle(model, row.images())
    return model


@functools.lru_cache(maxsize=2)  # in each mode
def _known(row: Row, train: bool) -> nn.Module:
    return row.model(train)


def wake(model: nn.Module) -> None:
    """Draw weights by which signal keeps its size; as they are built, some networks give a constant."""
    for name, weight in model.named_parameters():
        if weight.ndim >= 2 and name.endswith("weight"):
            nn.init.kaiming_normal_(weight, nonlinearity="linear")
        elif weight.ndim < 2 and not name.endswith("bias") and weight.detach().abs().max() < TINY:
            nn.init.ones_(weight)


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Give batch normalisation statistics of real activations, so that the model is alive in eval mode too."""
    momenta = {m: m.momentum for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if not momenta:
        return
    seed_all(0)
    for module in momenta:
        module.momentum = 0.9
    for _ in range(2):
        model(images)
    for module, momentum in momenta.items():
        module.momentum = momentum


def parameters(rows: Iterable[Row]) -> list[Any]:
    """Return the rows for `pytest.mark.parametrize`: one per library unmarked, the others slow."""
    return [pytest.param(row, id=str(row), marks=[] if row.quick else [pytest.mark.slow]) for row in rows]


def unpaired(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that have a part which none before them has."""
    return [row for row in rows if not row.paired]


def unused(model: nn.Module, output: Any) -> set[str]:
    """Name the trainable parameters that a model's own outputs do not depend on."""
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    objective = torch.stack([t.double().square().mean() for t in leaves(output) if t.requires_grad]).sum()
    found = torch.autograd.grad(objective, list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is None}
