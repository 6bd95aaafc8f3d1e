"""Numbers, or pairs of numbers that are sampled from."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor

Range: TypeAlias = float | tuple[float, float]
"""A number is fixed; a pair (low, high) is sampled from uniformly."""


def source_of(generator: torch.Generator | None) -> torch.device:
    """Return the device that random numbers are made on: the generator's, or the CPU without one."""
    return torch.device("cpu") if generator is None else generator.device


def draw(value: Range, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Sample from U(low, high) in float32; a number stays itself, as a 0-dim tensor, and samples nothing.

    Samples on the generator's device (the CPU without one), since the same seed gives other numbers on other devices,
    and then moves the result, for which the host does not wait.
    """
    if not isinstance(value, tuple):
        return torch.full((), value, dtype=torch.float32, device=device)
    low, high = value
    source = source_of(generator)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device=source)
    # Without blocking only towards a GPU: a copy from it could be read before it has arrived.
    return (low + (high - low) * uniform).to(device, non_blocking=source.type == "cpu")


def log_odds_of_beta(a: float, b: float, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Sample x from Beta(a, b), on the generator's device, and return log(x / (1 - x)) in float64.

    torch.distributions takes no generator. Logarithms, as gammas of small a and b underflow: if G and U are samples of
    Gamma(a + 1) and U(0, 1), then G · U^(1/a) is one of Gamma(a), and the quotient of two gives the odds.
    """
    source = source_of(generator)
    both = torch.tensor([a, b], dtype=torch.float64, device=source).expand(*shape, 2).contiguous()
    gammas: Tensor = torch._standard_gamma(both + 1, generator=generator)
    uniform = torch.rand(both.shape, dtype=both.dtype, device=source, generator=generator)
    first, second = (gammas.log() + torch.log1p(-uniform) / both).unbind(-1)
    return first - second


def as_range(name: str, value: object) -> Range:
    """Check a share in [0, 1], or a pair (low, high) of them, and return it as float or tuple.

    Raises:
        TypeError: It is neither a number nor a pair of numbers.
        ValueError: A number is outside [0, 1], or low is above high.
    """
    if not isinstance(value, (tuple, list)):
        return as_share(name, value)
    if len(value) != 2:
        raise TypeError(f"{name} must be a number or a pair (low, high); got {len(value)} values, {value!r}.")
    low, high = (as_share(name, end) for end in value)
    if low > high:
        raise ValueError(f"{name} must be a pair (low, high) with low <= high; got {value!r}. Swap the two.")
    return low, high


def as_share(name: str, value: object) -> float:
    """Check a number in [0, 1].

    Raises:
        TypeError: It is no number.
        ValueError: It is outside [0, 1].
    """
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or a pair (low, high); got {value!r}.")
    number = float(value)
    if not 0 <= number <= 1:
        hint = f" Did you mean {number / 100:g}?" if 2 <= number <= 100 else ""
        raise ValueError(f"{name} must be in [0, 1]; got {number:g}.{hint}")
    return number
