"""How hard examples are made, and what is learned from them: the settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import Tensor

from latentaug.augment.base import LatentTransform
from latentaug.augment.ranges import Range, as_range, as_share
from latentaug.augment.schedule import Schedule
from latentaug.checks import flag, whole
from latentaug.cooperative.image_style import check_style

Noise: TypeAlias = Callable[[Tensor, torch.Generator | None], Tensor]
"""Callable (images, generator) -> noisy images."""


@dataclass(frozen=True)
class HardExamples:
    """How hard examples are made, and what is learned from them.

    What is None by default depends on the model. One that declares its codes, as `FTN` does, is trained as in the
    paper. Any other is trained by its own losses: it sees the images as they are, and the image decoder and the shape
    prior learn from it without a gradient into it.

    Args:
        residual: Fraction of the residual that hard images keep: of what the image has beyond its reconstruction. 0,
            the paper's: a hard image is what the changed code decodes to, and as blurred. 1: the image itself, changed
            by as much as its reconstruction is. A pair is sampled from uniformly, for each sample. Default None: 0 for
            an image code that a model declares, and (0, 1) for any other, as models with skip connections have codes
            that hold few details; 1 with `mix`. See `docs/explanation/which-code.md`.
        noise: Standard deviation of the noise on training images, relative to `image_range`; or a callable
            (images, generator) -> noisy images. Default None: 0.05 for a model that declares its codes, as in the
            authors' code, and 0 for any other.
        fraction: Fraction of the batch, in (0, 1], that hard images and what is learned from them are made of; one
            sample at least.
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
        separate: Stop the gradient from the shape prior into the model. Default None: not for a model that declares its
            codes (where it is an ablation of the paper), and for any other.
        separate_decoder: Stop the gradient from the image decoder into the model. Default None: the same.
        mix: Fraction of the batch, in (0, 1], that hard images take the place of before the one pass of the model. They
            are made without gradients, from a pass up to the image code alone, changed at random places; so a step
            costs little more than one of the model alone. Default None: hard images have a pass of their own.
        every: Batches from one that hard examples are made of to the next. The state dict keeps the count. Default
            None: 1 for a model that declares its codes and with `mix`; 3 for any other, so that a step costs a
            tenth to a quarter more than one of the model alone, and not a half.

    Raises:
        ValueError: A number is out of range.
        TypeError: Something is no number.

    Example:
        >>> HardExamples(residual=(0, 1), fraction=0.5).residual
        (0.0, 1.0)
    """

    residual: Range | None = None
    noise: float | Noise | None = None
    fraction: float = 1.0
    scale: float = 1.0
    saliency_every: int = 1
    frozen_norms: Sequence[str] = ()
    style: LatentTransform | None = None
    style_layers: Sequence[str] | None = None
    separate: bool | None = None
    separate_decoder: bool | None = None
    mix: float | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if self.residual is not None:
            if isinstance(self.residual, Schedule):
                raise TypeError("residual must be a number or a pair; got a Schedule. Use one in a transform.")
            put("residual", as_range("residual", self.residual))
        noise = self.noise
        is_number = isinstance(noise, int | float) and not isinstance(noise, bool)
        if not (noise is None or callable(noise) or (is_number and 0 <= noise < math.inf)):
            raise ValueError(f"noise must be 0 or more, or a callable (images, generator); got {self.noise!r}.")
        for name in ("fraction", "scale", "mix"):
            if getattr(self, name) is None:
                continue
            number = as_share(name, getattr(self, name))
            if number == 0:
                raise ValueError(
                    f"{name} must be above 0; got 0. To train without hard examples, use standard_backward."
                )
            put(name, number)
        for name in ("saliency_every", "every"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), of="batches")
        for name in ("separate", "separate_decoder"):
            if getattr(self, name) is not None:
                flag(name, getattr(self, name))
        if self.mix is not None and self.style is not None:
            raise ValueError(
                "style climbs the loss of hard images, which mix= makes without one. Leave one of them out."
            )
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


def idle_options(hard: HardExamples, *, decodes: bool, corrects: bool) -> list[str]:
    """Name the options that change nothing in a model without an image decoder or a shape prior.

    Example:
        >>> idle_options(HardExamples(fraction=0.5, residual=0.3), decodes=False, corrects=True)
        ['residual']
    """
    of_images, of_shapes = ("residual", "separate_decoder"), ("separate",)
    names = [*of_images * (not decodes), *of_shapes * (not corrects)]
    given = [name for name in names if getattr(hard, name) is not None]
    return given + [name for name in ("fraction", "scale") if not (decodes or corrects) and getattr(hard, name) < 1]
