"""Intensity of images as nnU-Net changes it: noise, blur, brightness, contrast, low resolution and gamma."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.image import check_axes, norm_over, with_moments_of
from latentaug.augment.ranges import Range, as_range, draw, source_of
from latentaug.augment.style import at_least_float32, full_precision

NOISE = (0.0, 0.1)
"""Deviation of noise, as a fraction of the image's own."""
BLUR = (0.5, 1.0)
"""Deviation of the Gaussian kernel, in pixels."""
FACTOR = (0.75, 1.25)
"""Of brightness and of contrast."""
ZOOM = (0.5, 1.0)
GAMMA = (0.7, 1.5)
DARKEST = 1e-6
"""The smallest value, of 0..1, that is raised to a power below 1: at 0 that has an infinite gradient."""


class StrongIntensity(LatentTransform):
    """Change the intensity of images in the ways of nnU-Net, each with a chance of its own, and no shape.

    In this order: noise; blur; brightness, by a factor; contrast, around the mean and within the image's range; low
    resolution and back; gamma of the inverted image; gamma. For gamma an image is scaled to 0..1 and afterwards has its
    mean and deviation again, so that images may be negative. What the parts make of an image is clipped to the image's
    own range. No tap is needed: call `augment` on images.

    Args:
        noise: Chance of noise, whose deviation is up to 0.1 of the image's own. (nnU-Net, whose images have a deviation
            of 1, calls that number a variance and uses it as the deviation.)
        blur: Chance of a Gaussian blur, of 0.5 to 1 pixels along each axis.
        brightness: Chance of a factor of 0.75 to 1.25.
        contrast: Chance of a contrast of 0.75 to 1.25.
        resolution: Chance of 0.5 to 1 of the resolution: the nearest pixels, with linear interpolation between them.
        inverted_gamma: Chance of a gamma of 0.7 to 1.5 of the inverted image.
        gamma: Chance of a gamma of 0.7 to 1.5.
        p: Chance that any of them acts, in [0, 1]. Default 1.
        per_sample: Whether that is sampled for each sample; the others always are. Default True.

    The defaults are those of nnU-Net's default trainer, version 2, but that there blur and low resolution leave out
    half of the channels. All are in [0, 1]; a pair is sampled from uniformly, once per batch.

    Shape:
        images: [B, C, *S] of one to three spatial axes.   output: the same.

    Samples:
        Whether to act; for each sample which parts do; for each of its channels how strongly, factors and gammas being
        below 1 as often as above; and noise; all from `generator`, on its device. A part that is sampled for nobody is
        not computed, if the generator is on the CPU.

    Raises:
        ValueError: An argument is out of range, or images have more than three spatial axes.
        TypeError: An argument is of another kind.

    References:
        Isensee et al., Nature Methods 2021 (nnU-Net).

    Example:
        >>> images = torch.rand(2, 1, 32, 32)
        >>> change = StrongIntensity(noise=1, gamma=0.5)(images, generator=torch.Generator().manual_seed(0))
        >>> change.apply(images).shape, "noise" in change.params
        (torch.Size([2, 1, 32, 32]), True)
    """

    place = "image"

    def __init__(
        self,
        *,
        noise: Range = 0.1,
        blur: Range = 0.2,
        brightness: Range = 0.15,
        contrast: Range = 0.15,
        resolution: Range = 0.25,
        inverted_gamma: Range = 0.1,
        gamma: Range = 0.3,
        p: Range = 1.0,
        per_sample: bool = True,
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        self.noise = as_range("noise", noise)
        self.blur = as_range("blur", blur)
        self.brightness = as_range("brightness", brightness)
        self.contrast = as_range("contrast", contrast)
        self.resolution = as_range("resolution", resolution)
        self.inverted_gamma = as_range("inverted_gamma", inverted_gamma)
        self.gamma = as_range("gamma", gamma)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample for each part whom it changes [B], and how strongly [B, C, …]; parts that nobody gets are left out."""
        check_axes(self, code)
        params: dict[str, Any] = {}
        for part, (sample, _) in _PARTS.items():
            chosen = _chosen(getattr(self, part), len(code), context)
            if chosen is not None:
                params[part] = {"chosen": chosen, "by": sample(code, context)}
        return params

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Change those that were chosen, part by part, and keep each channel's range."""
        images = changed = at_least_float32(code)
        for part, (_, change) in _PARTS.items():
            if part in params:
                chosen = params[part]["chosen"].view(-1, *[1] * (code.ndim - 1))
                changed = torch.where(chosen, change(changed, params[part]["by"].to(images.dtype)), changed)
        return changed.clamp(*_range(images))


def add_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Add noise [B, C, *S], given in deviations of each channel."""
    deviation = norm_over(images - _mean(images), 2) / math.sqrt(math.prod(images.shape[2:]))
    return images + deviation * noise


def blur(images: Tensor, deviation: Tensor) -> Tensor:
    """Blur by a Gaussian of another deviation [B, C, axes] for each channel and axis, without what lies outside."""

    def gaussian(axis: int, length: int) -> Tensor:
        place = torch.arange(length, device=images.device, dtype=images.dtype)
        squares = (place[:, None] - place) ** 2
        return torch.softmax(-squares / (2 * deviation[:, :, axis, None, None] ** 2), -1)

    return along_each_axis(images, gaussian)


def brighten(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each channel by a factor [B, C]."""
    return images * _spread(factor, images)


def change_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance from each channel's mean by a factor [B, C], within the channel's range."""
    mean = _mean(images)
    return ((images - mean) * _spread(factor, images) + mean).clamp(*_range(images))


def lower_resolution(images: Tensor, zoom: Tensor) -> Tensor:
    """Keep a fraction [B, C] of the pixels along each axis, the nearest ones, and interpolate between them linearly."""

    def interpolation(axis: int, length: int) -> Tensor:
        place = torch.arange(length, device=images.device)
        kept = (zoom * length).round().long().clamp_min(1)[:, :, None]
        last = kept - 1
        where = (((2 * place + 1) * kept - length).to(images.dtype) / (2 * length)).clamp_min(0)
        before = where.long().minimum(last)
        after = (before + 1).minimum(last)
        fraction = (where - before)[..., None]
        first, second = (((2 * at + 1) * length // (2 * kept))[..., None] == place for at in (before, after))
        return (1 - fraction) * first + fraction * second

    return along_each_axis(images, interpolation)


def correct_gamma(images: Tensor, gamma: Tensor) -> Tensor:
    """Raise each channel, scaled to 0..1, to a power [B, C], and restore its mean and deviation."""
    low, high = _range(images)
    scaled = (images - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)
    return with_moments_of(images, scaled.clamp_min(DARKEST) ** _spread(gamma, images), 2)


def correct_inverted_gamma(images: Tensor, gamma: Tensor) -> Tensor:
    """Correct the gamma of the inverted image, and invert that."""
    return -correct_gamma(-images, gamma)


def along_each_axis(images: Tensor, matrix: Callable[[int, int], Tensor]) -> Tensor:
    """Multiply each channel, along one spatial axis after the other, by what `matrix(axis, length)` gives.

    Shape:
        images: [B, C, *S].   a matrix: [B, C, length, length].   output: [B, C, *S].
    """
    for axis, length in enumerate(images.shape[2:]):
        rows = images.movedim(axis + 2, 2)
        with full_precision(images):
            changed = matrix(axis, length) @ rows.reshape(*rows.shape[:3], -1)
        images = changed.reshape(rows.shape).movedim(2, axis + 2)
    return images


def _sample_noise(code: Tensor, context: Context) -> Tensor:
    deviation = context.uniform(NOISE, *code.shape[:2])
    return _spread(deviation, code) * context.randn(*code.shape)


def _sample_blur(code: Tensor, context: Context) -> Tensor:
    return context.uniform(BLUR, *code.shape[:2], code.ndim - 2)


def _sample_zoom(code: Tensor, context: Context) -> Tensor:
    return context.uniform(ZOOM, *code.shape[:2])


def _sample_factor(code: Tensor, context: Context) -> Tensor:
    return _around_one(FACTOR, code, context)


def _sample_gamma(code: Tensor, context: Context) -> Tensor:
    return _around_one(GAMMA, code, context)


_PARTS: dict[str, tuple[Callable[[Tensor, Context], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "noise": (_sample_noise, add_noise),
    "blur": (_sample_blur, blur),
    "brightness": (_sample_factor, brighten),
    "contrast": (_sample_factor, change_contrast),
    "resolution": (_sample_zoom, lower_resolution),
    "inverted_gamma": (_sample_gamma, correct_inverted_gamma),
    "gamma": (_sample_gamma, correct_gamma),
}
"""What is sampled for each part, and what it does to images, in their order."""


def _around_one(limits: tuple[float, float], code: Tensor, context: Context) -> Tensor:
    """Sample [B, C] from below 1 and from above, as often."""
    side = context.uniform((-1.0, 1.0), *code.shape[:2])
    return 1 + side * torch.where(side < 0, 1 - limits[0], limits[1] - 1)


def _chosen(chance: Range, batch: int, context: Context) -> Tensor | None:
    """Sample whom a part changes [B]; None where it is known, without asking a device, that it is nobody."""
    source = source_of(context.generator)
    chosen = draw((0.0, 1.0), (batch,), source, context.generator) < draw(chance, (), source, context.generator)
    return None if chosen.is_cpu and not chosen.any() else chosen.to(context.device, non_blocking=chosen.is_cpu)


def _space(images: Tensor) -> tuple[int, ...]:
    return tuple(range(2, images.ndim))


def _mean(images: Tensor) -> Tensor:
    return images.mean(_space(images), keepdim=True)


def _range(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.amin(_space(images), keepdim=True), images.amax(_space(images), keepdim=True)


def _spread(numbers: Tensor, images: Tensor) -> Tensor:
    return numbers.view(*numbers.shape, *[1] * (images.ndim - 2))
