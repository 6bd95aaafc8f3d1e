"""What a short-axis volume goes through between file and network: plain functions on arrays [D, H, W].

Resampling works on grids that share their centre, so the centre crop that follows keeps the same tissue at any
resolution; the new voxels are exactly `SPACING` apart, and positions beyond the outermost voxel centres repeat them.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

_Scalar = TypeVar("_Scalar", bound=np.generic)

SPACING = 1.36719
"""In-plane voxel size in mm after resampling."""

PADDED = 224
"""Smaller planes are padded with zeros to this size before the centre crop."""


def clip_percentiles(volume: npt.NDArray[np.generic], percentiles: tuple[float, float]) -> Volume:
    """Clip a volume to two of its percentiles and scale it to 0..1; a constant volume becomes 0."""
    values = volume.astype(np.float64)
    low, high = np.percentile(values, percentiles)
    return _to_unit_range(np.clip(values, low, high), low, high)


def rescale_slices(volume: npt.NDArray[np.floating]) -> Volume:
    """Scale every slice to 0..1 by its own minimum and maximum; a constant slice becomes 0."""
    return _to_unit_range(volume, volume.min((1, 2), keepdims=True), volume.max((1, 2), keepdims=True))


def resample_image(volume: Volume, spacing: tuple[float, float]) -> Volume:
    """Resample every slice to `SPACING` by linear interpolation; `spacing` is the present (y, x) in mm."""
    for axis, step in zip((1, 2), spacing, strict=True):
        size = volume.shape[axis]
        position = _positions(size, step)
        before = position.astype(np.intp)
        after = np.minimum(before + 1, size - 1)
        weight = (position - before).astype(np.float32).reshape((-1, 1) if axis == 1 else (1, -1))
        volume = volume.take(before, axis) * (1 - weight) + volume.take(after, axis) * weight
    return volume


def resample_labels(labels: Labels, spacing: tuple[float, float]) -> Labels:
    """Resample every slice on the grid of `resample_image`, each new voxel from the nearest old one."""
    for axis, step in zip((1, 2), spacing, strict=True):
        labels = labels.take(np.rint(_positions(labels.shape[axis], step)).astype(np.intp), axis)
    return labels


def resampled_size(size: int, step: float) -> int:
    """Return how many voxels of `SPACING` an axis of `size` voxels, `step` mm each, has."""
    return max(round(size * step / SPACING), 1)


def pad_and_crop(volume: npt.NDArray[_Scalar], size: int) -> npt.NDArray[_Scalar]:
    """Pad planes smaller than `PADDED`² with zeros, then cut the central `size`² out."""
    missing = [max(max(PADDED, size) - n, 0) for n in volume.shape[1:]]
    volume = np.pad(volume, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    top, left = ((n - size) // 2 for n in volume.shape[1:])
    return volume[:, top : top + size, left : left + size]


def halve_image(volume: Volume) -> Volume:
    """Average every 2x2 block of a slice, and scale the slices to 0..1 again."""
    total = sum(volume[:, row::2, column::2] for row in (0, 1) for column in (0, 1))
    return rescale_slices(np.asarray(total / 4))


def halve_labels(labels: Labels) -> Labels:
    """Take the commonest label of every 2x2 block; of two equally common ones, the upper left voxel's.

    The image's blocks have their centres in the same places, so labels and image don't drift apart by half a voxel, as
    they would if each block were represented by one of its corners.
    """
    corners = np.stack([labels[:, row::2, column::2] for row in (0, 1) for column in (0, 1)])
    votes = np.stack(
        [(corners == label).sum(0) + 0.5 * (corners[0] == label) for label in range(int(labels.max()) + 1)]
    )
    return votes.argmax(0).astype(np.uint8)


def _to_unit_range(volume: npt.NDArray[np.floating], low: npt.ArrayLike, high: npt.ArrayLike) -> Volume:
    low = np.asarray(low)
    width = np.subtract(high, low)
    return ((volume - low) / np.where(width > 0, width, 1)).astype(np.float32)


def _positions(size: int, step: float) -> npt.NDArray[np.float64]:
    """Where the new voxels lie along an axis, counted in old voxels."""
    new_size = resampled_size(size, step)
    position = (np.arange(new_size) - (new_size - 1) / 2) * (SPACING / step) + (size - 1) / 2
    return np.clip(position, 0, size - 1)
