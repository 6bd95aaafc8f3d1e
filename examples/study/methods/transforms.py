"""Image-space augmentations that cooperative training is compared with: batched, and drawn from one generator.

Each changes a slice with probability 0.5, scales every slice to 0..1 again, and moves nothing, so that labels stay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from study.data.augment import chance, rescale, uniform

CHANGED = 0.5
KERNELS = 4
"""Sizes of random kernels: 1, 3, 5 and 7."""
CONTROL_POINTS = 4
BIAS = 0.4
"""Standard deviation of the logarithm of a bias field at its control points."""
NOISE = 0.2
"""The largest standard deviation of Gaussian noise."""


def random_convolution(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mix slices with what a random kernel makes of them, which changes texture and contrast but no shape.

    The kernel is 1, 3, 5 or 7 pixels wide, its entries normal with a variance of one over their number; the share of
    the slice itself in the mixture is uniform.

    Shape:
        images: [n, 1, H, W].   returned: the same, in 0..1.
    Draws:
        Everything per slice, from `generator`, on its device; the work is done on the images' device.

    References:
        Xu et al., ICLR 2021, arXiv:2007.13003 (RandConv, the mixing variant).
    """
    n, widest = len(images), 2 * KERNELS - 1
    radius = torch.randint(KERNELS, (n, 1, 1, 1), generator=generator, device=generator.device)
    weights = torch.randn((n, 1, widest, widest), generator=generator, device=generator.device)
    away = (torch.arange(widest, device=generator.device) - widest // 2).abs()
    inside = torch.maximum(away[:, None], away) <= radius  # a narrow kernel is a wide one with zeros around
    kernel = weights * inside / (2 * radius + 1)
    own = uniform(0, 1, (n, 1, 1, 1), generator).to(images)
    filtered = F.conv2d(images.movedim(0, 1), kernel.to(images), padding="same", groups=n).movedim(1, 0)
    return _some(images, own * images + (1 - own) * filtered, generator)


def bias_field(images: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply slices by a smooth random field, as the coils of a scanner do.

    The field's logarithm is normal at 4 x 4 control points, with cubic interpolation between them.

    Shape:
        images: [n, 1, H, W].   returned: the same, in 0..1.
    Draws:
        Everything per slice, from `generator`, on its device; the work is done on the images' device.

    References:
        Chen et al., MICCAI 2020, arXiv:2006.13322 (where the field is adversarial; here it is random).
    """
    shape = (len(images), 1, CONTROL_POINTS, CONTROL_POINTS)
    points = BIAS * torch.randn(shape, generator=generator, device=generator.device)
    field = F.interpolate(points.to(images), images.shape[2:], mode="bicubic", align_corners=True).exp()
    return _some(images, images * field, generator)


def gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to slices, of a standard deviation of up to 0.2.

    Shape:
        images: [n, 1, H, W].   returned: the same, in 0..1.
    Draws:
        Deviation per slice and noise per pixel, from `generator`, on its device.
    """
    deviation = uniform(0, NOISE, (len(images), 1, 1, 1), generator)
    noise = deviation * torch.randn(images.shape, generator=generator, device=generator.device)
    return _some(images, images + noise.to(images), generator)


def _some(images: Tensor, changed: Tensor, generator: torch.Generator) -> Tensor:
    chosen = chance(CHANGED, (len(images), 1, 1, 1), generator).to(images.device)
    return rescale(torch.where(chosen, changed, images))
