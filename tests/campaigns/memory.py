"""What modules of random networks keep from call to call, or from one module to another."""

from __future__ import annotations

import random
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Tally:
    """An object of the model's own, which counts."""

    calls: int = 0
    mean: float = 0.0


KINDS = (
    "counter",
    "counted buffer",
    "average",
    "average in place",
    "averaged buffer",
    "buffer in place",
    "last",
    "cache",
    "drawn once",
    "torch generator",
    "python generator",
    "numpy generator",
    "log",
    "window",
    "object",
    "codebook",
    "schedule",
    "array",
)


class Remembering(nn.Module):
    """Keeps something from call to call, in one of the ways that are around, and lets its result depend on it.

    Args:
        kind: The way.
        always: Whether in eval mode too.
    """

    def __init__(self, kind: str, always: bool = False) -> None:
        super().__init__()
        self.kind, self.always = kind, always
        self.calls, self.average, self.last = 0, torch.zeros((), dtype=torch.float64), None
        self.seen: list[Any] = []
        self.cache: dict[Any, Tensor] = {}
        self.tally, self.array = Tally(), np.zeros(2)
        self.source: Any = None
        if kind == "torch generator":
            self.source = torch.Generator().manual_seed(3)
        elif kind == "python generator":
            self.source = random.Random(3)
        elif kind == "numpy generator":
            self.source = np.random.default_rng(3)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.codes = nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64), requires_grad=False)

    def extra_repr(self) -> str:
        return self.kind + (", always" if self.always else "")

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training or self.always):
            return x
        method = getattr(self, f"_{self.kind.replace(' ', '_')}")
        return method(x)

    def _counter(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * (self.calls % 3))

    def _counted_buffer(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * (1 + 0.1 * (self.count % 3).to(x))

    def _average(self, x: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * x.detach().double().mean()
        return x - self.average.to(x)

    def _average_in_place(self, x: Tensor) -> Tensor:
        self.average.mul_(0.9).add_(0.1 * x.detach().double().mean())
        return x - self.average.to(x)

    def _averaged_buffer(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().double().mean()
        return x - self.mean.to(x)

    def _buffer_in_place(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(x.double().mean(), 0.1)
        return x - self.mean.to(x).clone()

    def _last(self, x: Tensor) -> Tensor:
        last, self.last = self.last, x.detach().clone()
        return x + 0.1 * last if last is not None and last.shape == x.shape and last.dtype == x.dtype else x * 1.0

    def _cache(self, x: Tensor) -> Tensor:
        if x.shape[1:] not in self.cache:
            self.cache[x.shape[1:]] = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
        return x + 0.1 * self.cache[x.shape[1:]]

    def _drawn_once(self, x: Tensor) -> Tensor:
        if x.shape[1:] not in self.cache:
            self.cache[x.shape[1:]] = torch.randn(x.shape[1:], dtype=x.dtype)
        return x + 0.1 * self.cache[x.shape[1:]]

    def _torch_generator(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=self.source, dtype=x.dtype)

    def _python_generator(self, x: Tensor) -> Tensor:
        return x * self.source.uniform(0.5, 1.5)

    def _numpy_generator(self, x: Tensor) -> Tensor:
        return x * float(self.source.uniform(0.5, 1.5))

    def _log(self, x: Tensor) -> Tensor:
        self.seen.append(float(x.detach().float().mean()))
        return x * 1.0

    def _window(self, x: Tensor) -> Tensor:
        self.seen = [*self.seen[-2:], float(x.detach().float().mean())]
        return x - sum(self.seen) / len(self.seen)

    def _object(self, x: Tensor) -> Tensor:
        self.tally.calls += 1
        self.tally.mean = 0.5 * self.tally.mean + 0.5 * float(x.detach().float().mean())
        return x - self.tally.mean + 0.1 * (self.tally.calls % 2)

    def _codebook(self, x: Tensor) -> Tensor:
        codes = self.codes.to(x)
        nearest = (x.detach().unsqueeze(-1) - codes).abs().argmin(-1)
        with torch.no_grad():
            self.codes.mul_(0.95).add_(0.05 * x.detach().double().mean())
        return x + 0.1 * codes.clone()[nearest]

    def _schedule(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.dropout(x, 0.5 / self.calls, training=True)

    def _array(self, x: Tensor) -> Tensor:
        self.array[0] += 1.0
        return x * float(1 + 0.1 * (self.array[0] % 2))


def remembering(rng: Random) -> Remembering:
    """Draw a way to remember."""
    return Remembering(rng.choice(KINDS), always=rng.random() < 0.4)


class Stash(nn.Module):
    """Leaves what it is given on itself, for another module to fetch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.kept, self.box = how, None, []

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "list":
            self.box.append(x)
        else:
            self.kept = x
        return x * 1.0 if self.how == "copy" else x

    def extra_repr(self) -> str:
        return self.how

    def fetched(self) -> Tensor:
        """Return what was left here."""
        if self.how == "list":
            return self.box.pop()
        kept, self.kept = self.kept, None if self.how == "once" else self.kept
        return kept


class Fetch(nn.Module):
    """Adds what another module has left on itself."""

    def __init__(self, source: Stash) -> None:
        super().__init__()
        self.source = [source]  # no submodule

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.source[0].fetched()


class Collected(nn.Module):
    """Reads what a hook of the user's has collected from a block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        block.__dict__["collected"] = []
        block.register_forward_hook(collect)

    def forward(self, x: Tensor) -> Tensor:
        self.block.collected.clear()
        y = self.block(x)
        return y + 0.1 * self.block.collected[-1].abs().mean()


def collect(module: Any, args: Any, output: Tensor) -> None:
    """Keep what a module returned, on the module."""
    module.collected.append(output)
