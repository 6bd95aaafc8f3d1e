"""What `CooperativeModel` makes of its arguments: codes, heads that fit them, and checked options."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

from latentaug.augment.base import LatentTransform, mixes_labels
from latentaug.augment.compose import paper_masks
from latentaug.cooperative.labels import between_classes, of_size, whole_numbers
from latentaug.discovery.codes import Codes, find_codes, find_levels
from latentaug.nets.heads import ReconstructionHead, ShapePrior, as_image_range
from latentaug.tap.latent_tap import LatentTap
from latentaug.tap.sampling import Layer
from latentaug.tracing.location import Location

logger = logging.getLogger("latentaug")

ImageRange: TypeAlias = tuple[float, float] | None
Layers: TypeAlias = Layer | Sequence[Layer]


HALF = 0.5
"""Resolution of the heads that are made: what an image decoder changes in an image is smooth, what a shape prior
corrects is large, and they cost a quarter."""


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
    code: Location, example: Tensor, image_range: tuple[float, float] | None, scale: float = HALF
) -> ReconstructionHead:
    """Make a reconstruction head for a code, with as many image channels as the example has."""
    channels = code.shape[code.layout.channel_dim]
    return ReconstructionHead(
        channels, example.shape[1], code.stride, image_range=image_range, layout=code.layout, scale=scale
    )


def new_shape_prior(num_classes: int, example: Tensor, scale: float = 1.0, regions: bool = False) -> ShapePrior:
    """Size the prior so that its code has about the paper's grid, 12 sites along the longest axis."""
    depth = max(1, round(math.log2(scale * max(example.shape[2:]) / 12)))
    return ShapePrior(num_classes, depth=depth, spatial_dims=example.ndim - 2, scale=scale, regions=regions)


def placed_like(head: nn.Module, model: nn.Module, example: Tensor) -> Any:
    """Give a new head the model's device and precision."""
    like = next(model.parameters(), example)
    return head.to(like.device, like.dtype)


class FoundCodes(NamedTuple):
    """Where images are decoded from, and where segmentations are replayed from."""

    image: Location | None
    shape: list[Location]
    declared: bool
    """Whether the codes are the model's own: images, if they are decoded, are by the decoder that it declares."""


def resolve_codes(
    model: nn.Module,
    codes: Codes | Mapping[str, Layers] | Layers | None,
    example: Tensor,
    logits: Any,
    *,
    images: bool,
) -> FoundCodes:
    """Find the codes that a user named, that the model declares, or that can be found; of images if these are decoded.

    Raises:
        ValueError: A name in a mapping is not "image" or "shape", there is no such layer, or an image code is named
            and images are not decoded.
    """
    named: Mapping[str, Layers | None]
    if isinstance(codes, Codes):
        named = codes._asdict()
    elif isinstance(codes, Mapping):
        named = codes
        if unknown := sorted(set(codes) - {"image", "shape"}):
            raise ValueError(f"codes must name 'image' or 'shape'; got {', '.join(map(repr, unknown))}.")
    else:
        named = {} if codes is None else {"image": codes, "shape": codes}
    image, shape = named.get("image"), named.get("shape")
    declared = declaration(model)
    if not images:
        if image is not None and isinstance(codes, Mapping):
            raise ValueError("codes['image'] takes an image decoder; got reconstruction=False. Leave one of them out.")
        if shape is None:
            shape = find_levels(model, example, logits=logits) if declared is None else declared.shape_code
        return FoundCodes(None, located(model, shape, example), declared is not None)
    if declared is not None:
        image = declared.image_code if image is None else image
        shape = declared.shape_code if shape is None else shape
    elif image is None or shape is None:
        found = find_codes(model, example, logits=logits)
        image, shape = found.image if image is None else image, found.shape if shape is None else shape
    place = coarsest(located(model, image, example))
    return FoundCodes(place, located(model, shape, example), declared is not None and declared.image_code == str(place))


def transform_pair(augment: object) -> tuple[LatentTransform, LatentTransform]:
    """Return the transforms of image code and shape code; one transform is both.

    Raises:
        TypeError: Something is no transform, there are not two, or one cannot be used here.
    """
    augment = paper_masks() if augment is None else augment
    pair = augment if isinstance(augment, tuple | list) else (augment, augment)
    if len(pair) != 2 or not all(isinstance(one, LatentTransform) for one in pair):
        raise TypeError(
            f"augment must be a transform, or a pair of them for image code and shape code; got "
            f"{[type(one).__name__ for one in pair]}. Pass an instance, such as paper_masks()."
        )
    for one in pair:
        if one.whole_pass:
            raise TypeError(
                f"augment must change one code; {type(one).__name__} mixes the samples of a whole pass. Use it with "
                "LatentTap or augmented."
            )
        if (mixing := mixes_labels(one)) is not None:
            raise TypeError(
                f"augment must keep labels as they are; {mixing} mixes them, of which a CooperativeModel doesn't know. "
                "Use it with augmented, whose loss(criterion, logits, labels) mixes them too."
            )
        if needs := set(one.needs) - {"saliency"}:
            raise TypeError(
                f"augment must ask for no more than the saliency; {type(one).__name__} asks for {sorted(needs)[0]}. "
                "Use it with LatentTap."
            )
    return pair[0], pair[1]


def resolve_range(given: ImageRange | Literal["example"], example: Tensor, decoder: nn.Module | None) -> ImageRange:
    """Return the range of the images: as it was given, as the image decoder has it, or as the example says.

    Raises:
        ValueError: It is no range.
    """
    if isinstance(given, str):
        if given != "example":
            raise ValueError(f"image_range must be a pair (low, high), None or 'example'; got {given!r}.")
        if decoder is not None and hasattr(decoder, "image_range"):
            own: Any = decoder.image_range
            declared: ImageRange = own
            return declared
        low, high = (float(value) for value in example.aminmax())
        bounded = low >= 0 and high <= 1
        logger.info(
            "CooperativeModel takes images %s, as the example has values from %g to %g. Pass image_range= otherwise.",
            "in 0..1" if bounded else "without bounds",
            low,
            high,
        )
        return (0.0, 1.0) if bounded else None
    return as_image_range(given)


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


def check_shapes(images: Tensor, labels: Tensor, regions: int | None = None) -> None:
    """See that labels are class indices of the images' size, or as many regions of it.

    Raises:
        ValueError: They are of another shape.
    """
    if regions is not None:
        if not of_size(labels, len(images), images.shape[2:], regions):
            raise ValueError(
                f"CooperativeModel of regions needs labels [B, {regions}, *S], 0 and 1 in a channel for each, for "
                f"images of shape {tuple(images.shape)}; got {tuple(labels.shape)}."
            )
        return
    if not of_size(labels, len(images), images.shape[2:]):
        raise ValueError(
            f"CooperativeModel needs labels [B, *S] or [B, 1, *S] for images of shape {tuple(images.shape)}; got "
            f"{tuple(labels.shape)}. Pass class indices of the images' size, not one channel per class; or, where "
            "channels may overlap, regions=True."
        )


def check_range(images: Tensor, image_range: ImageRange) -> None:
    """See that images have the values that they were said to have; the host waits for them.

    Raises:
        ValueError: One is out of range, or not finite.
    """
    if image_range is None:
        return
    low, high = image_range
    lowest, highest = (float(value) for value in images.aminmax())
    slack = 1e-3 * (high - low)  # interpolation and rounding overshoot a little
    if not (low - slack <= lowest and highest <= high + slack):
        raise ValueError(
            f"CooperativeModel needs images in image_range=({low:g}, {high:g}); got values from {lowest:g} to "
            f"{highest:g}. Rescale the images, or pass image_range=(low, high) as they are, or None for images "
            "without bounds, such as z-scored ones."
        )


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """See that labels are among the classes; the host waits for them.

    Raises:
        TypeError: They are complex numbers.
        ValueError: One is no class, or lies between two.
    """
    if labels.is_complex():
        raise TypeError(f"CooperativeModel needs labels that are class indices; got {labels.dtype}.")
    indices = whole_numbers(labels)
    known = (indices >= 0) & (indices < max(num_classes, 2)) | (indices == ignore_index)
    unknown = ~known | between_classes(labels)
    if unknown.any():
        position = tuple(unknown.nonzero()[0].tolist())
        raise ValueError(
            f"CooperativeModel needs labels in 0 … {max(num_classes, 2) - 1} or ignore_index="
            f"{ignore_index}; got {labels[position].item():g}."
        )
