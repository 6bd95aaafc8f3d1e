"""Numbers that change over the iterations of a training."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from latentaug.checks import number, shown, whole

Shape = Literal["linear", "cosine"]
"""How a number moves: as fast all the time, or slowly at both ends."""


class Schedule(nn.Module):
    """A number of a transform that moves from `start` to `stop` over the iterations of a training.

    Stands wherever a transform takes a number or a pair to sample from. It stays at `stop` once it is there.
    `CooperativeTrainer` advances the schedules of its model after each iteration; in a loop of your own, call
    `transform.step()`, which advances all schedules within the transform. How far they are is part of the transform's
    state dict.

    Args:
        start: The number, or the pair, to begin with.
        stop: The one to end with; a pair if `start` is one.
        iterations: How many iterations lie between them.
        after: Iterations before it starts to move. Default 0.
        shape: "linear", or "cosine" for slow ends.

    Raises:
        ValueError: `iterations` is below 1, `after` below 0, a number not finite, or the shape unknown.
        TypeError: Something is no number, or one of the two ends is a pair and the other is not.

    Example:
        >>> from latentaug import DropBlock
        >>> transform = DropBlock(p=Schedule(0.0, 0.2, iterations=100))
        >>> for _ in range(50):
        ...     transform.step()
        >>> transform.p.value
        0.1
        >>> Schedule((0.0, 0.0), (0.0, 0.5), iterations=10).value
        (0.0, 0.0)
    """

    def __init__(
        self,
        start: float | tuple[float, float],
        stop: float | tuple[float, float],
        iterations: int,
        *,
        after: int = 0,
        shape: Shape = "linear",
    ) -> None:
        super().__init__()
        if isinstance(start, tuple | list) != isinstance(stop, tuple | list):
            raise TypeError(f"Schedule needs two numbers or two pairs; got {start!r} and {stop!r}.")
        for name, count, least in (("iterations", iterations, 1), ("after", after, 0)):
            whole(name, count, least=least, of="iterations")
        if shape not in get_args(Shape):
            raise ValueError(f"shape must be one of {', '.join(map(repr, get_args(Shape)))}; got {shape!r}.")
        self.start = _end("start", start)
        self.stop = _end("stop", stop)
        self.iterations = iterations
        self.after = after
        self.shape = shape
        self.iteration = 0

    @property
    def value(self) -> float | tuple[float, float]:
        """The number, or the pair, at this iteration."""
        way = min(max(self.iteration - self.after, 0) / self.iterations, 1.0)
        if self.shape == "cosine":
            way = (1 - math.cos(math.pi * way)) / 2
        if isinstance(self.start, tuple) and isinstance(self.stop, tuple):
            low, high = (_between(a, b, way) for a, b in zip(self.start, self.stop, strict=True))
            return low, high
        assert not isinstance(self.start, tuple)
        assert not isinstance(self.stop, tuple)
        return _between(self.start, self.stop, way)

    def step(self, iterations: int = 1) -> None:
        """Go on by an iteration, or several."""
        self.iteration += iterations

    def get_extra_state(self) -> Tensor:
        """Return the iteration, for the state dict."""
        return torch.tensor(self.iteration)  # which formats that hold nothing but tensors take, too

    def set_extra_state(self, state: Any) -> None:
        """Go on from the iteration of a state dict."""
        self.iteration = int(state)

    def extra_repr(self) -> str:
        """Show all but the iteration."""
        after = f", after={self.after}" if self.after else ""
        shape = f", shape={self.shape!r}" if self.shape != "linear" else ""
        return f"{self.start!r}, {self.stop!r}, iterations={self.iterations}{after}{shape}"


def advance(module: nn.Module) -> None:
    """Advance all schedules within a module by one iteration; one that stands at several places once."""
    for one in module.modules():
        if isinstance(one, Schedule):
            one.step()


def _end(name: str, value: float | tuple[float, float]) -> float | tuple[float, float]:
    """Check a number, or a pair of them; a list becomes a tuple."""
    if not isinstance(value, tuple | list):
        number(name, value)
        return value
    if len(value) != 2:
        raise TypeError(f"{name} must be a number or a pair (low, high); got {shown(value)}.")
    low, high = value
    for one in value:
        number(name, one)
    return low, high


def _between(start: float, stop: float, way: float) -> float:
    return stop if way == 1 else start + (stop - start) * way
