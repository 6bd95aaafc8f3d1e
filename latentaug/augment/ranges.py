"""Numbers, or pairs of numbers that are sampled from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from latentaug.augment.schedule import Schedule

Range: TypeAlias = float | tuple[float, float] | Schedule
"""A number is fixed; a pair (low, high) is sampled from uniformly; a schedule is either, by the iteration."""


def source_of(generator: torch.Generator | None) -> torch.device:
    """Return the device that random numbers are made on: the generator's, or the CPU without one."""
    return torch.device("cpu") if generator is None else generator.device


def from_stream(generator: torch.Generator | None) -> dict[str, Any]:
    """Return what torch is to be told of a generator: nothing where there is none.

    Compiled functions don't take a None where a shape is not known beforehand.
    """
    return {} if generator is None else {"generator": generator}


def value_of(value: Range) -> float | tuple[float, float]:
    """Return the number or the pair that is meant now."""
    return value.value if isinstance(value, Schedule) else value


def draw(value: Range, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Sample from U(low, high) in float32; a number stays itself, as a 0-dim tensor, and samples nothing.

    Samples on the generator's device (the CPU without one), since the same seed gives other numbers on other devices,
    and then moves the result, for which the host does not wait.
    """
    value = value_of(value)
    if not isinstance(value, tuple):
        return torch.full((), value, dtype=torch.float32, device=device)
    low, high = value
    source = source_of(generator)
    uniform = torch.rand(shape, dtype=torch.float32, device=source, **from_stream(generator))
    # Without blocking only towards a GPU: a copy from it could be read before it has arrived.
    return (low + (high - low) * uniform).to(device, non_blocking=source.type == "cpu")


def log_odds_of_beta(a: float, b: float, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Sample x from Beta(a, b), on the generator's device, and return log(x / (1 - x)) in float64.

    torch.distributions takes no generator. Logarithms, as gammas of small a and b underflow: if G and U are samples of
    Gamma(a + 1) and U(0, 1), then G · U^(1/a) is one of Gamma(a), and the quotient of two gives the odds.
    """
    source = source_of(generator)
    both = torch.tensor([a, b], dtype=torch.float64, device=source).expand(*shape, 2).contiguous()
    gammas: Tensor = torch._standard_gamma(both + 1, **from_stream(generator))
    uniform = torch.rand(both.shape, dtype=both.dtype, device=source, **from_stream(generator))
    first, second = (gammas.log() + torch.log1p(-uniform) / both).unbind(-1)
    return first - second


def as_range(name: str, value: object, *, most: float = 1.0) -> Range:
    """Check a number in [0, most], a pair (low, high) of them, or a schedule between such; return it as given.

    Raises:
        TypeError: It is neither a number nor a pair of numbers nor a schedule.
        ValueError: A number is outside [0, most], or low is above high.
    """
    if isinstance(value, Schedule):
        for end in (value.start, value.stop):
            as_range(name, end, most=most)
        return value
    if not isinstance(value, (tuple, list)):
        return as_number(name, value, most=most)
    if len(value) != 2:
        raise TypeError(f"{name} must be a number or a pair (low, high); got {len(value)} values, {value!r}.")
    low, high = (as_number(name, end, most=most) for end in value)
    if low > high:
        raise ValueError(f"{name} must be a pair (low, high) with low <= high; got {value!r}. Swap the two.")
    return low, high


def as_share(name: str, value: object) -> float:
    """Check a number in [0, 1]; see `as_number`."""
    return as_number(name, value)


def as_number(name: str, value: object, *, most: float = 1.0) -> float:
    """Check a number in [0, most], and finite.

    Raises:
        TypeError: It is no number.
        ValueError: It is outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or a pair (low, high); got {value!r}.")
    number = float(value)
    if not (0 <= number <= most and number < math.inf):
        hint = f" Did you mean {number / 100:g}?" if most == 1 and 2 <= number <= 100 else ""
        bound = "0 or more, and finite" if most == math.inf else f"in [0, {most:g}]"
        raise ValueError(f"{name} must be {bound}; got {number:g}.{hint}")
    return number
