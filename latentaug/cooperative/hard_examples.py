"""Hard examples: codes of a pass in, hard images and hard segmentations out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from latentaug.augment.base import Change, LatentTransform
from latentaug.augment.masks import LatentMask
from latentaug.augment.ranges import Range, as_range, as_share, draw
from latentaug.augment.schedule import Schedule
from latentaug.checks import whole
from latentaug.cooperative.code_taps import CodeTaps
from latentaug.cooperative.eager_losses import Losses
from latentaug.cooperative.image_style import check_style, style_layers, styled
from latentaug.cooperative.logits import LogitsReader, Prediction
from latentaug.cooperative.shortcuts import Every, draw_samples, normal_noise, scaled_size, shrink, taken
from latentaug.tracing.location import Location
from latentaug.tracing.moving import held_still

Noise: TypeAlias = Callable[[Tensor, torch.Generator | None], Tensor]
"""Callable (images, generator) -> noisy images."""

RESIDUAL = (0.0, 1.0)
"""Fraction of the residual that hard images keep, on a model that doesn't declare its codes."""


_NOTHING = LatentTransform(p=0.0)


@dataclass(frozen=True)
class HardExamples:
    """How hard examples are made, and what is learned from them.

    Args:
        residual: Fraction of the residual that hard images keep: of what the image has beyond its reconstruction. 0,
            the paper's: a hard image is what the changed code decodes to, and as blurred. 1: the image itself, changed
            by as much as its reconstruction is. A pair is sampled from uniformly, for each sample. Default None: 0 for
            an image code that a model declares, as `FTN` does, and (0, 1) for any other, as models with skip
            connections have codes that hold few details. See "Which code" in `docs/explanation/cardiac-example.md`.
        noise: Standard deviation of the noise on training images, relative to `image_range`; or a callable
            (images, generator) -> noisy images. Default 0.05, as in the authors' code.
        fraction: Fraction of the batch, in (0, 1], that hard examples are made of; one sample at least.
        scale: Size of hard examples along each axis, in (0, 1], relative to the images; up to whole positions of the
            deepest code. Images, segmentations and the clean images are averaged, of labels the nearest are taken.
        saliency_every: Batches from one whose saliency is computed to the next. Between them, transforms that ask for
            it are given noise: changes of the same kind and strength at random places. The state dict keeps the count.
        frozen_norms: Names of submodules, from the `CooperativeModel` on, whose batch normalisation learns no scale and
            shift from the hard losses. The authors' code does so in all its networks but the image decoder; the paper
            doesn't say it. Such parameters are unused in the second stage of `cooperative_backward`, which DDP must be
            told.
        style: What changes levels of the image decoder: hard images are then what the image code decodes to in another
            style, and the code itself is left alone. `MaxStyle()` as its paper has it; its ascent costs for each step
            what follows those levels and a pass of the model, forward and backward. Default None.
        style_layers: Names of submodules of the image decoder to change; they return [B, C, *S]. Default: the last two
            levels of a `ReconstructionHead`, and the image that it returns, as in the paper of `MaxStyle`.
        separate: Stop the gradient from the shape prior into the model (an ablation of the paper).

    Raises:
        ValueError: A number is out of range.
        TypeError: Something is no number.

    Example:
        >>> HardExamples(residual=(0, 1), fraction=0.5).residual
        (0.0, 1.0)
    """

    residual: Range | None = None
    noise: float | Noise = 0.05
    fraction: float = 1.0
    scale: float = 1.0
    saliency_every: int = 1
    frozen_norms: Sequence[str] = ()
    style: LatentTransform | None = None
    style_layers: Sequence[str] | None = None
    separate: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if self.residual is not None:
            if isinstance(self.residual, Schedule):
                raise TypeError("residual must be a number or a pair; got a Schedule. Use one in a transform.")
            put("residual", as_range("residual", self.residual))
        if not callable(self.noise) and not (isinstance(self.noise, int | float) and 0 <= self.noise < math.inf):
            raise ValueError(f"noise must be 0 or more, or a callable (images, generator); got {self.noise!r}.")
        for name in ("fraction", "scale"):
            number = as_share(name, getattr(self, name))
            if number == 0:
                raise ValueError(
                    f"{name} must be above 0; got 0. To train without hard examples, use standard_backward."
                )
            put(name, number)
        whole("saliency_every", self.saliency_every, of="batches")
        if isinstance(self.frozen_norms, str):
            raise TypeError(f"frozen_norms must be a list of names; got {self.frozen_norms!r}. Put it into a list.")
        put("frozen_norms", tuple(self.frozen_norms))
        if self.style is not None:
            check_style(self.style)
        if isinstance(self.style_layers, str):
            raise TypeError(f"style_layers must be a list of names; got {self.style_layers!r}. Put it into a list.")
        if self.style_layers is not None:
            put("style_layers", tuple(self.style_layers))

    def __repr__(self) -> str:
        given = [(one.name, getattr(self, one.name)) for one in fields(self) if getattr(self, one.name) != one.default]
        return f"HardExamples({', '.join(f'{name}={value!r}' for name, value in given)})"


class ChangedCode(NamedTuple):
    """A code and the change sampled for it."""

    location: Location
    code: Tensor
    saliency: Callable[[], Tensor]
    change: Change

    def shown(self) -> tuple[Tensor, Tensor | None]:
        """Return the saliency, and the factor if the change is a mask, with channels first."""
        see = self.location.layout.to_channels_first
        return see(self.saliency()), see(self.change.factor) if isinstance(self.change, LatentMask) else None


class Made(NamedTuple):
    """Hard examples of a batch; all but the prediction are constants."""

    images: Tensor
    segmentation: Tensor | None
    samples: Tensor | None
    prediction: Prediction | None
    """What the segmentation was taken from, of all samples and with a graph; None if nothing is learned from it."""


class HardExampleMaker:
    """Make hard examples from the codes of a pass: for the step, for explanations and for figures.

    Args:
        residual: Fraction of the residual that hard images keep unless the settings say another.
        codes: Where images are decoded from, and where segmentations are replayed from.
        transforms: What changes the image code, and what the shape codes.
        reader: Reads the logits of replays.
        image_range: Lowest and highest image value.
    """

    def __init__(
        self,
        *,
        residual: Range,
        codes: tuple[Location, Sequence[Location]],
        transforms: tuple[LatentTransform, LatentTransform],
        reader: LogitsReader,
        image_range: tuple[float, float] | None,
    ) -> None:
        self.settings = HardExamples()
        self.schedule: Every | None = None  # tells whether the saliency is due; None if it always is
        self._residual = residual
        self.image_code, self.shape_codes = codes
        self.transforms = transforms
        self.reader = reader
        self.image_range = image_range

    @property
    def image_transform(self) -> LatentTransform:
        """What changes the image code: nothing, where a style changes the image decoder in its place."""
        return self.transforms[0] if self.settings.style is None else _NOTHING

    @property
    def residual(self) -> Range:
        """Fraction of the residual that hard images keep."""
        return self._residual if self.settings.residual is None else self.settings.residual

    def make(
        self,
        taps: CodeTaps,
        losses: Losses,
        decode: nn.Module,
        images: Tensor,
        reconstructed: Tensor,
        generator: torch.Generator | None,
        *,
        segment: Callable[[Tensor, Tensor | None], Tensor],
        segmentations: bool,
        learn: bool,
        saliency_first: bool,
    ) -> Made:
        """Make hard examples while the graph of the pass is alive.

        Args:
            taps: Hold the codes of the pass.
            losses: Hold the losses that the codes are scored by.
            decode: The image decoder.
            images: The images, without noise.
            reconstructed: What the image code decodes to.
            generator: Source of the random numbers.
            segment: Returns the loss of the segmentation of images, of some samples of the batch or all.
            segmentations: Whether to make hard segmentations too.
            learn: Whether something is learned from the replay that they are taken from.
            saliency_first: Whether to compute the saliency whether or not a transform asks for it.
        """
        due = self.schedule is None or self.schedule()
        change = functools.partial(self._changed, taps, losses if due else None, generator, saliency_first)
        (image_code,) = change([self.image_code], self.image_transform, "reconstruction")
        shape_codes = change(self.shape_codes, self.transforms[1], "segmentation") if segmentations else []
        samples = draw_samples(len(images), self.settings.fraction, images.device, generator)

        def loss(decoded: Tensor) -> Tensor:
            with taps.aside():
                return segment(decoded, samples)

        hard_images = self.images(image_code, decode, images, reconstructed, generator, loss, samples)
        hard_images = shrink(hard_images, self.size(images.shape[2:]))
        if not segmentations:
            return Made(hard_images, None, samples, None)
        size = images.shape[2:]
        prediction = self.segmentations(taps, shape_codes, size, differentiable=learn)
        segmentation = shrink(taken(prediction.main.detach(), samples), self.size(size))
        return Made(hard_images, segmentation, samples, prediction if learn else None)

    def codes(
        self, taps: CodeTaps, losses: Losses, generator: torch.Generator | None
    ) -> tuple[ChangedCode, list[ChangedCode]]:
        """Sample a change of the image code, and of each shape code, by their saliency."""
        change = functools.partial(self._changed, taps, losses, generator, False)
        (image_code,) = change([self.image_code], self.image_transform, "reconstruction")
        return image_code, change(self.shape_codes, self.transforms[1], "segmentation")

    def images(
        self,
        changed: ChangedCode,
        decode: nn.Module,
        images: Tensor,
        reconstructed: Tensor,
        generator: torch.Generator | None,
        loss: Callable[[Tensor], Tensor],
        samples: Tensor | None = None,
    ) -> Tensor:
        """Return the images that a changed image code stands for, or those of some samples.

        Where a style changes them, `loss` returns the loss of the segmentation of such images.
        """
        style, size, dtype = self.settings.style, images.shape[2:], images.dtype
        with torch.no_grad(), held_still(decode):
            code = taken(changed.change.apply(changed.code), samples)
            if style is None:
                decoded = decode(code, size).to(dtype)
                return self._with_residual(images, reconstructed, generator, samples)(decoded)
            finished = self._with_residual(images, reconstructed, generator, samples)
            layers = style_layers(decode, self.settings.style_layers)
            return finished(styled(decode, code, size, style, layers, lambda image: loss(finished(image)), generator))

    def _with_residual(
        self, images: Tensor, reconstructed: Tensor, generator: torch.Generator | None, samples: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        """Sample which fraction of the residual hard images keep; return what adds it to decoded images."""
        if self.residual == 0:
            return lambda decoded: decoded.to(images.dtype)
        images, reconstructed = taken(images, samples), taken(reconstructed, samples).to(images.dtype)
        one_each = (len(images), *[1] * (images.ndim - 1))
        lost = 1 - draw(self.residual, one_each, images.device, generator)
        kept = images.lerp(reconstructed, lost.to(images.dtype))
        return lambda decoded: self.in_range(kept + (decoded.to(images.dtype) - reconstructed))

    def segmentations(
        self, taps: CodeTaps, changed: Sequence[ChangedCode], size: Sequence[int], *, differentiable: bool = False
    ) -> Prediction:
        """Return what the model predicts from changed shape codes."""
        with torch.set_grad_enabled(differentiable):
            # A tensor spares the pass up to the code; of several codes, the later depend on the earlier.
            new: list[Any] = (
                [one.change.apply(one.code) for one in changed]
                if len(changed) == 1
                else [one.change.apply for one in changed]
            )
            return self.reader.read(taps.replay(new), size)

    def noisy(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return training images with their noise."""
        if callable(self.settings.noise):
            return self.settings.noise(images, generator)
        noise = self.settings.noise * normal_noise(images, generator)
        if self.image_range is None:
            return images + noise * images.std()
        low, high = self.image_range
        return self.in_range(images + noise * (high - low))

    def in_range(self, images: Tensor) -> Tensor:
        """Clamp images to their range, if they have one."""
        return images if self.image_range is None else images.clamp(*self.image_range)

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the size of hard examples of images of a size."""
        deepest = max([self.image_code, *self.shape_codes], key=lambda one: math.prod(one.stride))
        return scaled_size(size, self.settings.scale, deepest.stride)

    def _changed(
        self,
        taps: CodeTaps,
        losses: Losses | None,
        generator: torch.Generator | None,
        saliency_first: bool,
        locations: Sequence[Location],
        transform: LatentTransform,
        name: str,
    ) -> list[ChangedCode]:
        """Sample a change of each of the codes at `locations`, by the gradient of the loss of that name.

        Without losses, by noise: what is salient falls anywhere.
        """
        codes = [taps.codes[location] for location in locations]

        @functools.cache  # for all at once, if one is asked for
        def saliencies() -> list[Tensor]:
            if losses is None:
                return [normal_noise(code, generator).float() for code in codes]
            return losses.saliencies(name, codes)

        if saliency_first:
            saliencies()
        changed = []
        for i, (code, location) in enumerate(zip(codes, locations, strict=True)):
            saliency = functools.partial(lambda i: saliencies()[i], i)
            change: Change = transform(code, saliency, layout=location.layout, generator=generator)
            changed.append(ChangedCode(location, code, saliency, change))
        return changed
