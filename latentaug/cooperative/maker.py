"""Hard examples: codes of a pass in, hard images and hard segmentations out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentaug.augment.base import Change, LatentTransform
from latentaug.augment.masks import LatentMask
from latentaug.augment.ranges import Range, draw
from latentaug.cooperative.code_taps import CodeTaps
from latentaug.cooperative.eager_losses import Losses
from latentaug.cooperative.hard_examples import HardExamples, Noise
from latentaug.cooperative.image_style import style_layers, styled
from latentaug.cooperative.logits import LogitsReader, Prediction
from latentaug.cooperative.shortcuts import Every, draw_samples, normal_noise, scaled_size, taken
from latentaug.nets.functional import resize, scaled_by, shrink
from latentaug.tap.plan_cache import moving_in
from latentaug.tap.prefix import calls_in, code_of
from latentaug.tracing.location import Location, unwrap
from latentaug.tracing.moving import held_still

NOISE = 0.05
"""Standard deviation of the noise on images, as in the authors' code."""

RESIDUAL = (0.0, 1.0)
"""Fraction of the residual that hard images keep, on a model that doesn't declare its codes."""

EVERY = 3
"""Batches from one that hard examples are made of to the next, on a model that doesn't declare its codes."""

_NOTHING = LatentTransform(p=0.0)


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

    images: Tensor | None
    segmentation: Tensor | None
    samples: Tensor | None
    prediction: Prediction | None
    """What the segmentation was taken from, of all samples and with a graph; None if nothing is learned from it."""


class HardExampleMaker:
    """Make hard examples from the codes of a pass: for the step, for explanations and for figures.

    Args:
        declared: Whether the model declares the image code, so that hard examples are the paper's.
        codes: Where images are decoded from, if they are, and where segmentations are replayed from.
        transforms: What changes the image code, and what the shape codes.
        reader: Reads the logits of replays.
        image_range: Lowest and highest image value.
    """

    def __init__(
        self,
        *,
        declared: bool,
        codes: tuple[Location | None, Sequence[Location]],
        transforms: tuple[LatentTransform, LatentTransform],
        reader: LogitsReader,
        image_range: tuple[float, float] | None,
    ) -> None:
        self.settings = HardExamples()
        self.schedule: Every | None = None  # tells whether the saliency is due; None if it always is
        self.declared = declared
        self.image_code, self.shape_codes = codes
        self.transforms = transforms
        self.reader = reader
        self.image_range = image_range
        self._image_calls: int | None = None  # of the image code's layer in a pass, once that has been counted

    @property
    def image_transform(self) -> LatentTransform:
        """What changes the image code: nothing, where a style changes the image decoder in its place."""
        return self.transforms[0] if self.settings.style is None else _NOTHING

    @property
    def residual(self) -> Range:
        """Fraction of the residual that hard images keep."""
        if self.settings.residual is not None:
            return self.settings.residual
        return 0.0 if self.declared else RESIDUAL if self.settings.mix is None else 1.0

    @property
    def every(self) -> int:
        """Batches from one that hard examples are made of to the next."""
        if self.settings.every is not None:
            return self.settings.every
        return 1 if self.declared or self.settings.mix is not None else EVERY

    @property
    def noise(self) -> float | Noise:
        """Noise on training images."""
        given = self.settings.noise
        return (NOISE if self.declared else 0.0) if given is None else given

    @property
    def separate(self) -> bool:
        """Whether the shape prior leaves the model alone."""
        return not self.declared if self.settings.separate is None else self.settings.separate

    @property
    def separate_decoder(self) -> bool:
        """Whether the image decoder leaves the model alone."""
        given = self.settings.separate_decoder
        return not self.declared if given is None else given

    def make(
        self,
        taps: CodeTaps,
        losses: Losses,
        decode: nn.Module | None,
        images: Tensor,
        reconstructed: Tensor | None,
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
            decode: The image decoder, if there is one.
            images: The images, without noise.
            reconstructed: What the image code decodes to; None if no hard images are wanted.
            generator: Source of the random numbers.
            segment: Returns the loss of the segmentation of images, of some samples of the batch or all.
            segmentations: Whether to make hard segmentations too.
            learn: Whether something is learned from the replay that they are taken from.
            saliency_first: Whether to compute the saliency whether or not a transform asks for it.
        """
        due = self.schedule is None or self.schedule()
        change = functools.partial(self._changed, taps, losses if due else None, generator, saliency_first)
        image_code = None
        if reconstructed is not None:
            image_code = self._image_change(change)
        shape_codes = change(self.shape_codes, self.transforms[1], "segmentation") if segmentations else []
        samples = draw_samples(len(images), self.settings.fraction, images.device, generator)
        size, hard_images = images.shape[2:], None

        def loss(decoded: Tensor) -> Tensor:
            with taps.aside():
                return segment(decoded, samples)

        if decode is not None and image_code is not None and reconstructed is not None:
            hard_images = self.images(image_code, decode, images, reconstructed, generator, loss, samples)
            hard_images = shrink(hard_images, self.size(size))
        if not segmentations:
            return Made(hard_images, None, samples, None)
        prediction = self.segmentations(taps, shape_codes, size, differentiable=learn)
        segmentation = shrink(taken(prediction.main.detach(), samples), self.size(size))
        return Made(hard_images, segmentation, samples, prediction if learn else None)

    def mixed(
        self, model: nn.Module, decode: nn.Module, images: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put hard images in the place of some of a batch, before its pass, without gradients.

        The pass up to the image code is one of these samples alone. Its code is changed at random places, where a
        transform asks for a saliency; what it decodes to and what the changed one decodes to are told apart.

        Returns:
            The batch, the hard images in it and their positions.
        """
        assert self.image_code is not None
        assert self.settings.mix is not None
        samples = draw_samples(len(images), self.settings.mix, images.device, generator)
        chosen = taken(images, samples)
        with without_graph(images.device), held_still(unwrap(model), moving_in(unwrap(model))), held_still(decode):
            if self._image_calls is None:
                self._image_calls = calls_in(model, self.image_code.name, chosen[:2].clone())
            # A copy, which the model may change. Images are decoded from the layer's last call.
            code = code_of(model, self.image_code, chosen.clone(), call=self._image_calls - 1)
            noise = functools.partial(normal_noise, code.float(), generator)
            change: Change = self.transforms[0](code, noise, layout=self.image_code.layout, generator=generator)
            # Together, so that both are normalised alike.
            both = decode(torch.cat([code, change.apply(code)]), decoded_size(decode, images.shape[2:]))
            before, after = both.to(images.dtype).chunk(2)
            hard = self._with_residual(chosen, before, generator, None)(after)
        if samples is None:
            return hard.clone(), hard, torch.arange(len(images), device=images.device)
        return images.index_copy(0, samples, hard), hard, samples

    def codes(
        self, taps: CodeTaps, losses: Losses, generator: torch.Generator | None
    ) -> tuple[ChangedCode | None, list[ChangedCode]]:
        """Sample a change of the image code, if there is one, and of each shape code, by their saliency."""
        change = functools.partial(self._changed, taps, losses, generator, False)
        image_code = None if self.image_code is None else self._image_change(change)
        return image_code, change(self.shape_codes, self.transforms[1], "segmentation")

    def _image_change(self, change: Callable[..., list[ChangedCode]]) -> ChangedCode:
        (changed,) = change([self.image_code], self.image_transform, "reconstruction")
        return changed

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
        style, size, dtype = self.settings.style, decoded_size(decode, images.shape[2:]), images.dtype
        with without_graph(images.device), held_still(decode):
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
        size = images.shape[2:]
        if self.residual == 0:
            return lambda decoded: resize(decoded.to(images.dtype), size)
        images, reconstructed = taken(images, samples), taken(reconstructed, samples).to(images.dtype)
        one_each = (len(images), *[1] * (images.ndim - 1))
        lost = 1 - draw(self.residual, one_each, images.device, generator)
        kept = images.lerp(resize(reconstructed, size), lost.to(images.dtype))
        # Both are smooth where they are decoded at a lower resolution, and so is their difference.
        return lambda decoded: self.in_range(kept + resize(decoded.to(images.dtype) - reconstructed, size))

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
        if callable(self.noise):
            return self.noise(images, generator)
        if not self.noise:
            return images
        noise = self.noise * normal_noise(images, generator)
        if self.image_range is None:
            return images + noise * images.std()
        low, high = self.image_range
        return self.in_range(images + noise * (high - low))

    def in_range(self, images: Tensor) -> Tensor:
        """Clamp images to their range, if they have one."""
        return images if self.image_range is None else images.clamp(*self.image_range)

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the size of hard examples of images of a size."""
        codes = [*filter(None, [self.image_code]), *self.shape_codes]
        deepest = max(codes, key=lambda one: math.prod(one.stride))
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


@contextmanager
def without_graph(device: torch.device) -> Iterator[None]:
    """Compute without gradients, and leave no weights in autocast's cache, where a pass with gradients would find them.

    Newer versions of PyTorch see to that themselves.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in {"cpu", device.type}:
            if torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
        yield


def decoded_size(decode: nn.Module, size: Sequence[int]) -> tuple[int, ...]:
    """Return the size at which an image decoder is called for images of a size: smaller if its `scale` is a float."""
    scale = getattr(decode, "scale", 1.0)
    return scaled_by(size, scale if isinstance(scale, float) and 0 < scale <= 1 else 1.0)
