"""What `CooperativeModel` makes of its arguments: codes, heads that fit them, and checked options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from latentaug.augment.base import LatentTransform
from latentaug.augment.ranges import as_share
from latentaug.cooperative.hard_examples import Every
from latentaug.nets.heads import ReconstructionHead, ShapePrior
from latentaug.tap.latent_tap import LatentTap, Layer
from latentaug.tracing.location import Location

WEIGHTS = {
    "segmentation": 1.0,
    "reconstruction": 0.5,
    "shape_from_logits": 1.0,
    "shape_from_labels": 1.0,
    "hard_image_segmentation": 1.0,
    "hard_image_reconstruction": 0.5,
    "shape_from_hard_image": 1.0,
    "shape_from_hard_segmentation": 1.0,
    "hard_code_segmentation": 0.0,
}


"""The paper's weights, by the names that `CooperativeOutput.losses` has.

"hard_code_segmentation" isn't the paper's: the segmentation loss of what the masked shape codes decode to, whose
gradient reaches decoder and encoder. It is computed only where it has a weight.
"""


class Declaration(NamedTuple):
    """What a model with codes of its own says about them, under these names."""

    image_code: str
    shape_code: str
    image_decoder: nn.Module


def declaration(model: nn.Module) -> Declaration | None:
    """Return what a model declares of its codes, as `FTN` does; None if it declares nothing."""
    found: list[Any] = [getattr(model, name, None) for name in Declaration._fields]
    return Declaration(*found) if all(map(isinstance, found, (str, str, nn.Module))) else None


def located(model: nn.Module, layers: Layer | Sequence[Layer] | None, example: Tensor) -> list[Location]:
    """Find layers of a model, or its bottleneck, by a pass over the example."""
    return LatentTap(model, layers, example=example).layers


def coarsest(locations: Sequence[Location]) -> Location:
    """Return the location whose sites stand for the most pixels."""
    return max(locations, key=lambda location: math.prod(location.stride))


def new_reconstruction_head(
    code: Location, example: Tensor, image_range: tuple[float, float] | None
) -> ReconstructionHead:
    """Make a reconstruction head for a code, with as many image channels as the example has."""
    channels = code.shape[code.layout.channel_dim]
    return ReconstructionHead(channels, example.shape[1], code.stride, image_range=image_range, layout=code.layout)


def new_shape_prior(num_classes: int, temperature: float, example: Tensor) -> ShapePrior:
    """Size the prior so that its code has about the paper's grid, 12 sites along the longest axis."""
    depth = max(1, round(math.log2(max(example.shape[2:]) / 12)))
    return ShapePrior(num_classes, depth=depth, spatial_dims=example.ndim - 2, temperature=temperature)


def placed_like(head: nn.Module, model: nn.Module, example: Tensor) -> Any:
    """Give a new head the model's device and precision."""
    like = next(model.parameters(), example)
    return head.to(like.device, like.dtype)


def masker_pair(masker: object) -> tuple[LatentTransform, LatentTransform]:
    """Return the maskers for image code and shape code; one masker is both.

    Raises:
        TypeError: something is no masker, or there are not two.
    """
    pair = masker if isinstance(masker, tuple | list) else (masker, masker)
    if len(pair) != 2 or not all(isinstance(one, LatentTransform) for one in pair):
        raise TypeError(
            f"masker must be a transform, or a pair of them for image code and shape code; got "
            f"{[type(one).__name__ for one in pair]}. Pass an instance, such as paper_masks()."
        )
    return pair[0], pair[1]


def complete_weights(given: Mapping[str, float]) -> dict[str, float]:
    """Add the paper's weights of the losses that none is given for.

    Raises:
        ValueError: there is no loss of a name.
    """
    if unknown := sorted(set(given) - set(WEIGHTS)):
        raise ValueError(f"CooperativeModel has no loss {', '.join(unknown)} to weigh; it has {', '.join(WEIGHTS)}.")
    return {**WEIGHTS, **given}


def saliency_schedule(saliency_every: int) -> Every | None:
    """Return what tells whether the saliency is due; None if it always is.

    Raises:
        ValueError: not a whole number, or none above 0.
    """
    if isinstance(saliency_every, bool) or not isinstance(saliency_every, int) or saliency_every < 1:
        raise ValueError(f"saliency_every must be a whole number of batches, 1 or more; got {saliency_every!r}.")
    return None if saliency_every == 1 else Every(saliency_every)


def positive_share(name: str, value: float) -> float:
    """Return a share in (0, 1].

    Raises:
        ValueError: it is another number; `name` is what the message calls it.
    """
    share = as_share(name, value)
    if share == 0:
        raise ValueError(f"{name} must be above 0; got 0. To train without hard examples, use standard_backward.")
    return share


def existing_submodules(root: nn.Module, option: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of submodules of `root`.

    Raises:
        ValueError: one does not exist; `option` is what the message calls their list.
    """
    known = dict(root.named_modules())
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{option} must name submodules, such as 'model' or 'shape_prior'; got {unknown}.")
    return tuple(names)


def separate_submodules(root: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of submodules none of which is inside another.

    Raises:
        ValueError: one is, or one is never called itself.
    """
    for name in names:
        if isinstance(root.get_submodule(name), nn.ModuleList | nn.ModuleDict):
            raise ValueError(f"checkpointed must name modules that are called; {name!r} only holds some: name those.")
        if within := [other for other in names if not name or other.startswith(f"{name}.")]:
            raise ValueError(f"checkpointed must name modules none inside another; got {name!r} and {within[0]!r}.")
    return tuple(names)


def check_decoder_range(decoder: nn.Module, image_range: tuple[float, float] | None) -> None:
    """See that an image decoder that says which values it returns means those of the images.

    Raises:
        ValueError: it means others.
    """
    given = getattr(decoder, "image_range", image_range)
    if given != image_range:
        raise ValueError(
            f"CooperativeModel needs an image decoder of image_range={image_range}; got one of {given}. "
            "Make both with the same image_range."
        )


def check_batch(
    images: Tensor, labels: Tensor, num_classes: int, image_range: tuple[float, float] | None, ignore_index: int
) -> None:
    """See that a batch is what it was said to be, values too, for which the host waits.

    Raises:
        ValueError: labels are no class indices, or none of these classes, or images are out of range.
    """
    if labels.ndim != images.ndim - 1:
        raise ValueError(
            f"CooperativeModel needs labels [B, *S] or [B, 1, *S] for images of shape {tuple(images.shape)}; got "
            f"{tuple(labels.shape)}. Pass class indices, not one channel per class."
        )
    if image_range is not None:
        low, high = image_range
        lowest, highest = (float(value) for value in images.aminmax())
        slack = 1e-3 * (high - low)  # interpolation and rounding overshoot a little
        if not (low - slack <= lowest and highest <= high + slack):
            raise ValueError(
                f"CooperativeModel needs images in image_range=({low:g}, {high:g}); got values from {lowest:g} to "
                f"{highest:g}. Rescale the images, or pass image_range=(low, high) as they are, or None for images "
                "without bounds, such as z-scored ones."
            )
    known = (labels >= 0) & (labels < max(num_classes, 2)) & (labels == labels.long())
    unknown = ~known & (labels != ignore_index)
    if unknown.any():
        raise ValueError(
            f"CooperativeModel needs labels in 0 … {max(num_classes, 2) - 1} or ignore_index="
            f"{ignore_index}; got {labels[unknown][0].item()}."
        )
