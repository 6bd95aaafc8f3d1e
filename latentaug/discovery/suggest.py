"""Where a transform's paper puts it, translated to a model never seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from latentaug.checks import called_on_example, module
from latentaug.discovery.bottleneck import bottleneck, looked
from latentaug.discovery.candidates import Candidate
from latentaug.discovery.stages import Stages, stages_of
from latentaug.tracing.location import Location, as_inputs, unwrap


class Suggestion(NamedTuple):
    """Layers for a transform, and why; print it.

    Args:
        layers: Where to put the transform; each is valid wherever `layer=` is. Empty where the images are the place.
        reason: Why there, in one line.

    Example:
        >>> import torch
        >>> from latentaug import FTN, GIN
        >>> found = suggest_layers(FTN(width=2, depth=2), torch.rand(1, 1, 32, 32), GIN())
        >>> found.layers
        ()
        >>> print(found)
        the images themselves: its paper changes them before the model sees them: call GIN(...).augment(images)
    """

    layers: tuple[Location, ...]
    reason: str

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.layers)) or 'the images themselves'}: {self.reason}"


def suggest_layers(
    model: nn.Module, example: Any, transform: nn.Module, *, logits: Callable[[Any], Any] | None = None
) -> Suggestion:
    """Tell where a transform's paper would put it in this model, by dry runs as of `find_bottleneck`.

    A transform says by its attribute `place` where it belongs: to the images, to stages of the encoder, to the
    bottleneck, or to the last stages of the decoder. A stage ends where the grid gets coarser, or the channels become
    wider. Of the modules that return what a stage ends with, the outermost is taken whose change all that follows sees,
    deeper stages and skip connections alike.

    Args:
        model: Any segmentation model.
        example: An input batch, as in `find_bottleneck`.
        transform: What is to be placed. One made of transforms goes where all of them go.
        logits: Reads from the model's output what must depend on the code, as in `find_bottleneck`.

    Raises:
        ValueError: The model has no such stages; or transforms that are composed go to different places.

    Example:
        >>> import torch
        >>> from latentaug import MixStyle
        >>> down = (nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1))
        >>> model = nn.Sequential(*down, nn.Upsample(scale_factor=8))
        >>> print(suggest_layers(model, torch.randn(2, 1, 32, 48), MixStyle()))
        0, 1: the first two of the encoder's 3 stages, of strides 2x2 and 4x4
    """
    module("transform", transform, who="suggest_layers")
    with called_on_example("suggest_layers", model, example):
        return suggest(unwrap(model), *as_inputs(example), transform, logits=logits)


def suggest(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    transform: nn.Module,
    *,
    logits: Callable[[Any], Any] | None = None,
) -> Suggestion:
    """Do what `suggest_layers` does, for a model that is not wrapped and arguments that are spelled out."""
    name, place = type(transform).__name__, getattr(transform, "place", BOTTLENECK)
    if place == IMAGE:
        return Suggestion((), f"its paper changes them before the model sees them: call {name}(...).augment(images)")
    places = (IMAGE, BOTTLENECK, *_PLACES)
    if place not in places:
        raise ValueError(
            f"suggest_layers needs a transform whose `place` is one of {', '.join(places)}; got "
            f"{name} with {place!r}. Ask for each transform by itself, and name the layers."
        )
    try:
        if place == BOTTLENECK:
            location = bottleneck(model, args, kwargs, logits=logits)
            return Suggestion((location,), f"the bottleneck, of stride {_stride(location.stride)}")
        stages = stages_of(model, *looked(model, args, kwargs, logits))
    except ValueError as error:
        raise ValueError(
            f"suggest_layers cannot place {name} in {type(model).__name__}, whose stages it tells by their grids. "
            f"{error} As in augmented(model, {{layer: {name}()}})."
        ) from error
    found = _PLACES[place](stages)
    if not found.layers:
        raise ValueError(
            f"suggest_layers found no layer for {name} in {type(model).__name__}: there is no stage "
            f"{'between the bottleneck and the logits' if place == LATE else 'before the bottleneck'} that one module "
            f"returns. Name the layer yourself, as in augmented(model, {{layer: {name}()}})."
        )
    return found


# Places -----------------------------------------------------------------------------------------------------------
IMAGE, BOTTLENECK, LATE = "image", "bottleneck", "late decoder"


def _encoder(stages: Stages) -> Suggestion:
    ends = [stages.stem, *stages.encoder] if stages.stem else stages.encoder
    return _in_encoder(ends, "the stem and all" if stages.stem else "all", stages)


def _early(stages: Stages, most: int = 2) -> Suggestion:
    ends = stages.encoder[:-1][:most]  # the last is the bottleneck's
    return _in_encoder(ends, f"the first{_two(ends)}", stages)


def _first(stages: Stages) -> Suggestion:
    return _early(stages, most=1)


def _input_or_early(stages: Stages) -> Suggestion:
    found = _early(stages)
    return found._replace(reason=f"one of these, or the images: {found.reason}")


def _deep(stages: Stages) -> Suggestion:
    ends = stages.encoder[-2:]
    return _in_encoder(ends, f"the last{_two(ends)}", stages)


def _late_decoder(stages: Stages) -> Suggestion:
    ends = [c for c in stages.decoder[-2:] if c.sites > stages.bottleneck.sites] or stages.decoder[-1:]
    return _told(ends, f"the last{_two(ends)} of the decoder's {len(stages.decoder)} stages before the logits")


_PLACES: dict[str, Callable[[Stages], Suggestion]] = {
    "input or early": _input_or_early,
    "first": _first,
    "early": _early,
    "encoder": _encoder,
    "deep": _deep,
    LATE: _late_decoder,
}


def _in_encoder(ends: Sequence[Candidate], which: str, stages: Stages) -> Suggestion:
    cut = ", cut by depth as its grid is one" if stages.by_depth else ""
    return _told(ends, f"{which} of the encoder's {len(stages.encoder)} stages{cut}")


def _told(ends: Sequence[Candidate], which: str) -> Suggestion:
    *most, last = [_stride(c.stride) for c in ends] or [""]
    strides = f"of strides {', '.join(most)} and {last}" if most else f"of stride {last}"
    return Suggestion(tuple(c.location for c in ends), f"{which}, {strides}")


def _stride(stride: tuple[int, ...]) -> str:
    return "x".join(map(str, stride))


def _two(ends: Sequence[Candidate]) -> str:
    return " two" if len(ends) == 2 else ""
