"""Image-space augmentation of every method: one batched resampling, drawn from one generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLIP = 0.2
ROTATION = 15.0
TRANSLATION = 0.1
SCALE = (0.8, 1.1)
BRIGHTNESS = 0.1
CONTRAST = (0.8, 1.2)
ELASTIC = 0.035
"""Standard deviation of an elastic displacement at its control points, as a share of half the image's side."""
CONTROL_POINTS = 6


def training_batch(images: Tensor, labels: Tensor, side: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return 2n slices: the n given ones augmented, then the same n as they are.

    Both halves are cropped to the central `side`² and every slice is scaled to 0..1. Slices that come with a margin
    around those `side`² have real tissue turned into their corners, and zeros otherwise.

    Shape:
        images: [n, 1, H, W].   labels: [n, H, W].   returned: [2n, 1, side, side], [2n, side, side].
    Draws:
        Everything per slice, from `generator`, on its device; the work is done on the images' device.
    """
    changed, changed_labels = augment(images, labels, generator=generator)
    images, labels = torch.cat([changed, images]), torch.cat([changed_labels, labels])
    return rescale(crop(images, side)), crop(labels, side)


def augment(images: Tensor, labels: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip, rotate, shift, scale and bend slices with their labels, and change the images' brightness and contrast.

    Each axis is flipped with probability 0.2. All slices are rotated by a multiple of 45° and up to ±15° more, moved
    by up to ±10 % of the side, and scaled by 0.8-1.1. With probability 0.5 each, contrast is multiplied by 0.8-1.2 and
    up to ±0.1 added (what leaves the slice's own range is clipped), and the slice is bent by a smooth random field.

    Shape:
        images: [n, 1, H, W], resampled linearly.   labels: [n, H, W], resampled to the nearest.
    Draws:
        Everything per slice, from `generator`, on its device.
    """
    matrix = _to(images, _affine(len(images), generator))
    bend = _to(images, _elastic(len(images), generator))
    images = _intensity(images, generator)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    grid = grid + F.interpolate(bend, images.shape[2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    moved = F.grid_sample(labels[:, None].to(images), grid, mode="nearest", align_corners=False)
    return F.grid_sample(images, grid, align_corners=False), moved[:, 0].to(labels)


def rescale(images: Tensor) -> Tensor:
    """Scale every slice [n, 1, H, W] to 0..1 by its own minimum and maximum; a constant slice becomes 0."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)


def crop(planes: Tensor, side: int) -> Tensor:
    """Return the central `side`² of planes [..., H, W]."""
    top, left = ((n - side) // 2 for n in planes.shape[-2:])
    return planes[..., top : top + side, left : left + side]


def _affine(n: int, generator: torch.Generator) -> Tensor:
    # affine_grid asks where an output position comes from, in coordinates from -1 to 1: the inverse of the movement.
    turns = torch.randint(8, (n,), generator=generator, device=generator.device)
    angle = torch.deg2rad(turns * 45 + uniform(-ROTATION, ROTATION, (n,), generator))
    flips = 1 - 2 * chance(FLIP, (n, 2), generator).float()
    zoom = 1 / uniform(*SCALE, (n,), generator)
    shift = 2 * uniform(-TRANSLATION, TRANSLATION, (n, 2), generator)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2)
    return torch.cat([rotation * zoom[:, None, None] * flips[:, :, None], shift[:, :, None]], dim=2)


def _elastic(n: int, generator: torch.Generator) -> Tensor:
    shape = (n, 2, CONTROL_POINTS, CONTROL_POINTS)
    field = ELASTIC * torch.randn(shape, generator=generator, device=generator.device)
    return field * chance(0.5, (n, 1, 1, 1), generator)


def _intensity(images: Tensor, generator: torch.Generator) -> Tensor:
    shape = (len(images), 1, 1, 1)
    contrast, shift = uniform(*CONTRAST, shape, generator), uniform(-BRIGHTNESS, BRIGHTNESS, shape, generator)
    chosen = chance(0.5, shape, generator)
    contrast, shift = torch.where(chosen, contrast, 1), torch.where(chosen, shift, 0)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images * _to(images, contrast) + _to(images, shift)).clamp(low, high)


def _to(images: Tensor, drawn: Tensor) -> Tensor:
    # Without blocking only towards a GPU: a copy from it could be read before it has arrived.
    return drawn.to(images, non_blocking=drawn.device.type == "cpu")


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from U(low, high), on the generator's device."""
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def chance(p: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw what is true with probability `p`, on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) < p
