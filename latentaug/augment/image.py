"""Transforms for images first: a batch of images is a code with one to four channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.ranges import Range, as_range
from latentaug.augment.style import at_least_float32, full_precision
from latentaug.checks import shown, whole

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class RandConv(LatentTransform):
    """Change texture and contrast, but no shape, by a random convolution of each sample.

    What the convolution makes of an image is mixed with the image, and the mixture is brought to the image's own mean
    and deviation: without that, training diverges on images that are scaled to a mean of 0. No tap is needed: call
    `augment` on images.

    Args:
        kernel_sizes: Sizes that each sample's kernel is sampled from, all equally likely. Default 1, 3, 5 or 7, as in
            the paper. A small kernel takes as long as the widest.
        strength: Fraction of the filtered image in the mixture, in [0, 1]; a pair is sampled from uniformly. Default
            (0, 1), as in the paper.
        p: Chance that it acts, in [0, 1]. Default 1.
        per_sample: Whether that is sampled for each sample. Default True.

    Shape:
        images: [B, C, *S] of one to three spatial axes.   output: the same.

    Samples:
        For each sample whether to act, the size of its kernel, the kernel's entries, of a variance of one over their
        number for each output, and the mixture; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range, or images have more than three spatial axes.
        TypeError: An argument is of another kind.

    References:
        Xu et al., ICLR 2021, arXiv:2007.13003 (with mixing; images of the paper keep no mean and deviation).

    Example:
        >>> images = torch.rand(2, 1, 32, 32)
        >>> changed = RandConv().augment(images, generator=torch.Generator().manual_seed(0))
        >>> changed.shape, torch.allclose(changed.flatten(1).std(dim=1), images.flatten(1).std(dim=1))
        (torch.Size([2, 1, 32, 32]), True)
    """

    place = "image"

    def __init__(
        self,
        kernel_sizes: Sequence[int] = (1, 3, 5, 7),
        strength: Range = (0.0, 1.0),
        *,
        p: Range = 1.0,
        per_sample: bool = True,
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        self.kernel_sizes = _odd_sizes(kernel_sizes)
        self.strength = as_range("strength", strength)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample kernels [B, C, C, *kernel], as wide as the widest and zero outside of a sample's own, and mixtures."""
        batch, channels, *axes = check_axes(self, code).shape
        widest, ones = max(self.kernel_sizes), [1] * len(axes)
        sizes = torch.tensor(self.kernel_sizes).to(code.device, non_blocking=True)
        size = sizes[(context.rand(batch) * len(sizes)).long()].view(-1, 1, 1, *ones)
        away = (torch.arange(widest, device=code.device) - widest // 2).abs()
        weights = (
            context.randn(batch, channels, channels, *[widest] * len(axes)) / (channels * size ** len(axes)).sqrt()
        )
        for axis in range(len(axes)):
            weights = weights * (away.view([widest if a == axis else 1 for a in range(len(axes))]) <= size // 2)
        return {"weights": weights, "strength": context.uniform(self.strength, batch)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Filter each image by its own kernel, mix, and restore its mean and deviation."""
        images = at_least_float32(code)
        changed = mixed(images, convolved(images, params["weights"].to(images.dtype)), params["strength"])
        return with_moments_of(images, changed)


class GIN(LatentTransform):
    """Change intensity and texture, but no shape, by a small network of random weights for each sample.

    Random convolutions with leaky ReLUs between them (global intensity non-linear augmentation); what they make of an
    image is mixed with the image and brought to the image's own norm. No tap is needed: call `augment` on images.

    Args:
        layers: Number of convolutions. Default 4, as in the paper, as are all other defaults.
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
        TypeError: An argument is of another kind.

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
        self.kernel_sizes = _odd_sizes(kernel_sizes)
        self.layers = whole("layers", layers)
        self.channels = whole("channels", channels)
        self.strength = as_range("strength", strength)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample weights [B, out, in, *kernel] and shifts [B, out] of each convolution, and the mixture."""
        batch, image_channels, *size = check_axes(self, code).shape
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
        return with_norm_of(images, mixed(images, filtered, params["strength"]))


class IPA(GIN):
    """Blend two changes by `GIN` of one image, by a smooth random field: regions change each in their own way.

    The field is a B-spline through random control points, scaled to 0..1 (interventional pseudo-correlation
    augmentation: what is bright in one region says nothing about another). The paper also asks two such images for the
    same prediction; that is a matter of the loss. No tap is needed: call `augment` on images.

    Args:
        layers, channels, kernel_sizes, strength: Of both networks, as for `GIN`.
        intervals: Intervals between the field's control points along each axis. Default 8, as in the paper.
        p: Chance that it acts, in [0, 1]. Default 1, as in the paper.
        per_sample: Whether that is sampled for each sample. Default True.

    Shape:
        images: [B, C, *S] of one to three spatial axes.   output: the same.

    Samples:
        What `GIN` samples, twice, and for each sample the field's control points, normal; from `generator`, on its
        device.

    Raises:
        ValueError: An argument is out of range, or images have more than three spatial axes.
        TypeError: An argument is of another kind.

    References:
        Ouyang et al., IEEE TMI 2023, arXiv:2111.12525.

    Example:
        >>> images = torch.rand(2, 1, 32, 32)
        >>> change = IPA()(images, generator=torch.Generator().manual_seed(0))
        >>> change.apply(images).shape, change.params["points"].shape
        (torch.Size([2, 1, 32, 32]), torch.Size([2, 1, 10, 10]))
    """

    def __init__(
        self,
        layers: int = 4,
        channels: int = 2,
        kernel_sizes: Sequence[int] = (1, 3),
        strength: Range = (0.0, 1.0),
        *,
        intervals: int = 8,
        p: Range = 1.0,
        per_sample: bool = True,
    ) -> None:
        super().__init__(layers, channels, kernel_sizes, strength, p=p, per_sample=per_sample)
        self.intervals = whole("intervals", intervals)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample two networks and the field's control points [B, 1, *points]."""
        first, second = super().make_params(code, context), super().make_params(code, context)
        points = context.randn(len(code), 1, *[self.intervals + 2] * (code.ndim - 2))
        return {"first": first, "second": second, "points": points}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Change each image in two ways, and blend them."""
        first, second = super().transform(code, **params["first"]), super().transform(code, **params["second"])
        field = smooth_field(params["points"].to(first.dtype), code.shape[2:])
        return field * first + (1 - field) * second


def check_axes(transform: LatentTransform, images: Tensor) -> Tensor:
    """Return images of one to three spatial axes; refuse others by the transform's name."""
    if images.ndim - 2 not in _CONV:
        raise ValueError(
            f"{type(transform).__name__} needs images of one to three spatial axes; got shape {tuple(images.shape)}."
        )
    return images


def convolved(images: Tensor, weight: Tensor, shift: Tensor | None = None) -> Tensor:
    """Convolve each image of a batch with a kernel of its own, zeros around it.

    Shape:
        images: [B, in, *S].   weight: [B, out, in, *kernel].   shift: [B, out].   output: [B, out, *S].
    """
    batch, after = weight.shape[:2]
    side_by_side = images.reshape(1, -1, *images.shape[2:])
    bias = None if shift is None else shift.flatten()
    padding = tuple(k // 2 for k in weight.shape[3:])
    with full_precision(images):
        result = _CONV[images.ndim - 2](side_by_side, weight.flatten(0, 1), bias, padding=padding, groups=batch)
    return result.view(batch, after, *images.shape[2:])


def mixed(images: Tensor, changed: Tensor, strength: Tensor) -> Tensor:
    """Mix images with what became of them, of which `strength` [B] is the fraction."""
    strength = strength.to(images.dtype).view(-1, *[1] * (images.ndim - 1))
    mixture: Tensor = strength * changed + (1 - strength) * images
    return mixture


def with_norm_of(images: Tensor, changed: Tensor, start: int = 1) -> Tensor:
    """Scale what became of images to the norm that they had over the axes from `start` on.

    What has become zero stays zero, and what was zero becomes zero; both have finite gradients.
    """
    own, smallest = norm_over(images, start), torch.finfo(images.dtype)
    return changed * (own / (norm_over(changed, start) + smallest.tiny).clamp_min(smallest.eps * own))


def with_moments_of(images: Tensor, changed: Tensor, start: int = 1) -> Tensor:
    """Bring what became of images to the mean and deviation that they had over the axes from `start` on."""
    axes = tuple(range(start, images.ndim))
    mean, centred = images.mean(axes, keepdim=True), changed - changed.mean(axes, keepdim=True)
    return with_norm_of(images - mean, centred, start) + mean


def norm_over(images: Tensor, start: int) -> Tensor:
    """Return the norm over the axes from `start` on, each of them 1 wide; its gradient at 0 is 0."""
    norm: Tensor = images.flatten(start).norm(dim=start)
    return norm.view(*images.shape[:start], *[1] * (images.ndim - start))


def smooth_field(points: Tensor, size: Sequence[int]) -> Tensor:
    """Return the quadratic B-spline of control points, scaled to 0..1 for each sample.

    The outermost points lie half an interval outside, so that n points make n - 2 intervals.

    Shape:
        points: [B, 1, *points].   size: *S.   output: [B, 1, *S].
    """
    field = points
    for axis, length in enumerate(size, start=2):
        n = field.shape[axis]
        control = torch.arange(n, device=points.device, dtype=points.dtype)
        where = 0.5 + (n - 2) * (torch.arange(length, device=points.device, dtype=points.dtype) + 0.5) / length
        away = (where[:, None] - control).abs()
        basis = torch.where(away < 0.5, 0.75 - away**2, (1.5 - away).clamp_min(0) ** 2 / 2)
        with full_precision(points):
            field = (field.movedim(axis, -1) @ basis.T).movedim(-1, axis)
    axes = tuple(range(1, points.ndim))
    low, high = field.amin(axes, keepdim=True), field.amax(axes, keepdim=True)
    return (field - low) / (high - low).clamp_min(torch.finfo(points.dtype).tiny)


def _odd_sizes(sizes: object) -> tuple[int, ...]:
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise TypeError(f"kernel_sizes must be a list of odd numbers, such as (1, 3); got {shown(sizes)}.")
    kept = tuple(sizes)
    whole_numbers = all(isinstance(size, Integral) and not isinstance(size, bool) for size in kept)
    if not kept or not whole_numbers or any(size < 1 or size % 2 == 0 for size in kept):
        raise ValueError(f"kernel_sizes must be odd numbers, such as (1, 3); got {shown(sizes)}.")
    return kept
