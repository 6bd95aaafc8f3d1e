"""Fewer, smaller, rarer: what makes hard examples cheaper and changes the numbers; off by default."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug.cooperative.labels import size_of


class Every(nn.Module):
    """Tell at the first call and at every `period`-th from there that it is time.

    The count is part of the state dict, so that training goes on from a checkpoint as it would have without.

    Example:
        >>> every = Every(3)
        >>> [every() for _ in range(5)]
        [True, False, False, True, False]
    """

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        self.calls = 0

    def forward(self) -> bool:
        """Count the call, and tell whether it is time."""
        due = self.is_due
        self.calls += 1
        return due

    @property
    def is_due(self) -> bool:
        """Whether it is time at the next call."""
        return self.calls % self.period == 0

    def get_extra_state(self) -> Tensor:
        """Return the count: a tensor, as all else in a state dict is."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a count."""
        self.calls = int(state)

    def extra_repr(self) -> str:
        """Show the period."""
        return str(self.period)


def draw_samples(batch: int, share: float, device: torch.device, generator: torch.Generator | None) -> Tensor | None:
    """Draw a share of a batch, at least one sample, and return the positions in order; None for all.

    Example:
        >>> draw_samples(8, 0.5, torch.device("cpu"), torch.Generator().manual_seed(0)).shape
        torch.Size([4])
        >>> draw_samples(8, 1.0, torch.device("cpu"), None) is None
        True
    """
    if share == 1:
        return None
    source = torch.device("cpu") if generator is None else generator.device
    drawn = torch.randperm(batch, generator=generator, device=source)[: max(1, round(share * batch))]
    return drawn.sort().values.to(device, non_blocking=source.type == "cpu")


def taken(tensor: Tensor, samples: Tensor | None) -> Tensor:
    """Return the samples at these positions, in the memory format of all; None is all."""
    return tensor if samples is None else tensor[samples]


def scaled_size(size: Sequence[int], scale: float, stride: Sequence[float]) -> tuple[int, ...]:
    """Return a size `scale` times as large along each axis, up to whole sites of a code with that stride.

    Example:
        >>> scaled_size((192, 200), 0.5, (16, 16)), scaled_size((192, 200), 1, (16, 16))
        ((96, 96), (192, 200))
    """
    if scale == 1:
        return tuple(size)
    sites = [max(1, round(scale * n / step)) for n, step in zip(size, stride, strict=True)]
    return tuple(min(n, round(m * step)) for n, m, step in zip(size, sites, stride, strict=True))


def shrink_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Take the nearest labels [B, *S] or [B, C, *S] at `size`, if they are larger."""
    if size_of(labels, len(size)) == tuple(size):
        return labels
    given = (labels if labels.ndim == len(size) + 2 else labels.unsqueeze(1)).float()
    nearest = F.interpolate(given, tuple(size), mode="nearest-exact")
    return nearest.view(*labels.shape[: -len(size)], *size).to(labels.dtype)


def normal_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Sample from N(0, 1), on the generator's device, in a tensor's shape, type and place."""
    source = like.device if generator is None else generator.device
    noise = torch.randn(like.shape, generator=generator, device=source)
    return noise.to(like.device, like.dtype, non_blocking=source.type == "cpu")
