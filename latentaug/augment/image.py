"""Transforms for images first: a batch of images is a code with one to four channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.ranges import Range, as_range
from latentaug.augment.style import at_least_float32

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class GIN(LatentTransform):
    """Change intensity and texture, but no shape, by a small network of random weights for each sample.

    Random convolutions with leaky ReLUs between them (global intensity non-linear augmentation); what they make of an
    image is mixed with the image and brought to the image's own norm. No tap is needed: call `augment` on images.

    Args:
        layers: Number of convolutions. Default 4, as in the paper, as are all defaults but that of `p`.
        channels: Channels between them. Default 2.
        kernel_sizes: Sizes that each convolution's kernel is sampled from. Default 1 or 3.
        strength: Fraction of the network's output in the mixture, in [0, 1]; a pair is sampled from uniformly.
        p: Chance that it acts, in [0, 1]. Default 1, as in the paper.
        per_sample: Whether that is sampled for each sample. Default True.

    Shape:
        images: [B, C, *S] of one to three spatial axes.   output: the same.

    Samples:
        Kernel sizes once per batch, as Python numbers (with a generator on a GPU the host waits for them); for each
        sample whether to act, its weights, its shifts and the mixture; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range, or images have more than three spatial axes.

    References:
        Ouyang et al., IEEE TMI 2023, arXiv:2111.12525.

    Example:
        >>> images = torch.rand(2, 1, 32, 32)
        >>> changed = GIN().augment(images, generator=torch.Generator().manual_seed(0))
        >>> changed.shape, torch.allclose(changed.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1))
        (torch.Size([2, 1, 32, 32]), True)
    """

    place = "image"

    def __init__(
        self,
        layers: int = 4,
        channels: int = 2,
        kernel_sizes: Sequence[int] = (1, 3),
        strength: Range = (0.0, 1.0),
        *,
        p: Range = 1.0,
        per_sample: bool = True,
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        for name, number in (("layers", layers), ("channels", channels)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number, 1 or more; got {number!r}.")
        self.kernel_sizes = tuple(kernel_sizes)
        if not self.kernel_sizes or any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd numbers, such as (1, 3); got {kernel_sizes!r}.")
        self.layers = layers
        self.channels = channels
        self.strength = as_range("strength", strength)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample weights [B, out, in, *kernel] and shifts [B, out] of each convolution, and the mixture."""
        batch, image_channels, *size = code.shape
        if len(size) not in _CONV:
            raise ValueError(f"GIN needs images of one to three spatial axes; got shape {tuple(code.shape)}.")
        widths = [image_channels, *[self.channels] * (self.layers - 1), image_channels]
        weights, shifts = [], []
        for before, after in itertools.pairwise(widths):
            kernel = self.kernel_sizes[context.choice([1.0] * len(self.kernel_sizes))]
            weights.append(context.randn(batch, after, before, *[kernel] * len(size)))
            shifts.append(context.randn(batch, after))
        return {"weights": weights, "shifts": shifts, "strength": context.uniform(self.strength, batch)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Filter each image by its own network, mix, and restore its norm."""
        images = filtered = at_least_float32(code)
        last = len(params["weights"]) - 1
        for layer, (weight, shift) in enumerate(zip(params["weights"], params["shifts"], strict=True)):
            filtered = convolved(filtered, weight.to(images.dtype), shift.to(images.dtype))
            if layer < last:
                filtered = F.leaky_relu(filtered)
        strength = params["strength"].to(images.dtype).view(-1, *[1] * (code.ndim - 1))
        mixed = strength * filtered + (1 - strength) * images
        smallest = torch.finfo(images.dtype)
        changed: Tensor = mixed * (
            _norm(images) / (_norm(mixed) + smallest.tiny).clamp_min(smallest.eps * _norm(images))
        )
        return changed


def convolved(images: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
    """Convolve each image of a batch with a kernel of its own, zeros around it.

    Shape:
        images: [B, in, *S].   weight: [B, out, in, *kernel].   shift: [B, out].   output: [B, out, *S].
    """
    batch, after = weight.shape[:2]
    side_by_side = images.reshape(1, -1, *images.shape[2:])
    bias = None if shift is None else shift.flatten()
    padding = tuple(k // 2 for k in weight.shape[3:])
    result = _CONV[images.ndim - 2](side_by_side, weight.flatten(0, 1), bias, padding=padding, groups=batch)
    return result.view(batch, after, *images.shape[2:])


def _norm(images: Tensor) -> Tensor:
    norm: Tensor = images.flatten(1).norm(dim=1)
    return norm.view(-1, *[1] * (images.ndim - 1))
