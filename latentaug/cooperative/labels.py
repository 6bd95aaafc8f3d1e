"""Labels as users give them: of any type that holds whole numbers, with an axis of channels or without."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-3
"""How far labels may be from whole numbers: formats that scale what they store miss them by rounding."""


def squeeze_labels(labels: Tensor, spatial_dims: int) -> Tensor:
    """Return labels [B, *S] whether they came so or as [B, 1, *S]."""
    return labels.squeeze(1) if labels.ndim == spatial_dims + 2 and labels.shape[1] == 1 else labels


def size_of(labels: Tensor, spatial_dims: int) -> tuple[int, ...]:
    """Return the spatial size of labels [B, *S] or [B, 1, *S]."""
    return tuple(labels.shape[-spatial_dims:])


def whole_numbers(labels: Tensor) -> Tensor:
    """Round labels to whole numbers, without waiting for the device: never cut them off.

    Floating-point labels stay floating point, in their shape; all others become int64, unsigned and boolean ones too.

    Example:
        >>> whole_numbers(torch.tensor([0.9999999997, 2.0], dtype=torch.float64))
        tensor([1., 2.], dtype=torch.float64)
        >>> whole_numbers(torch.tensor([3, 65535], dtype=torch.uint16))
        tensor([    3, 65535])
    """
    return _computable(labels).round() if labels.is_floating_point() else labels.long()


def between_classes(labels: Tensor) -> Tensor:
    """Tell for each label whether it is no whole number: further from one than rounding explains, or not finite.

    Example:
        >>> between_classes(torch.tensor([1.0, 0.99995, 0.5, float("nan")]))
        tensor([False, False,  True,  True])
    """
    if not labels.is_floating_point():
        return torch.zeros_like(labels, dtype=torch.bool)
    labels = _computable(labels)
    return ~((labels - labels.round()).abs() <= TOLERANCE)  # so that NaN is one, too


def of_size(labels: Tensor, batch: int, size: Sequence[int], regions: int | None = None) -> bool:
    """Tell whether labels are [B, *S] or [B, 1, *S] for a batch and a spatial size; of regions [B, regions, *S]."""
    if regions is not None:
        return tuple(labels.shape) == (batch, regions, *size)
    return tuple(squeeze_labels(labels, len(size)).shape) == (batch, *size)


def _computable(labels: Tensor) -> Tensor:
    """Return labels in a type that can be rounded everywhere."""
    return labels if labels.dtype in (torch.float32, torch.float64) else labels.float()
