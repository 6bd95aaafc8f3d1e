"""Where a transform's paper puts it, translated to a model never seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from latentaug.discovery.bottleneck import looked
from latentaug.discovery.stages import Stages, stages_of
from latentaug.tracing.location import Location, as_inputs, unwrap


class Suggestion(NamedTuple):
    """Layers for a transform, and why; print it.

    Args:
        layers: Where to put the transform; each is valid wherever `layer=` is. Empty where the images are the place.
        reason: Why there, in one line.
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
        0, 1: the first two of the encoder's 3 stages, of strides 2x2 and 4x4, where all that follows sees the change
    """
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
    name, place = type(transform).__name__, getattr(transform, "place", "bottleneck")
    if place == IMAGE:
        return Suggestion((), f"its paper changes what the model is given: call {name}(...).augment(images) on it")
    if place not in _PLACES:
        raise ValueError(
            f"suggest_layers needs a transform whose `place` is one of {', '.join((IMAGE, *_PLACES))}; got "
            f"{name} with {place!r}. Ask for each transform by itself, and name the layers."
        )
    try:
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
IMAGE, LATE = "image", "late decoder"


def _bottleneck(stages: Stages) -> Suggestion:
    return Suggestion((stages.bottleneck.location,), f"the bottleneck, of stride {_strides([stages.bottleneck])}")


def _encoder(stages: Stages) -> Suggestion:
    ends = [*([stages.stem] if stages.stem else []), *stages.encoder]
    return _told(ends, f"the ends of all {len(ends)} stages of the encoder{_cut(stages)}, of strides {{}}")


def _early(stages: Stages) -> Suggestion:
    count = len(stages.encoder)
    before = stages.encoder[:-1][:2]  # the last is the bottleneck's
    which = "the first two" if len(before) > 1 else "the first"
    return _told(before, f"{which} of the encoder's {count} stages{_cut(stages)}, of strides {{}}, {_SEEN}")


def _first(stages: Stages) -> Suggestion:
    found = _early(stages)
    stride = "x".join(map(str, found.layers[0].stride)) if found.layers else ""
    reason = f"the first of the encoder's {len(stages.encoder)} stages{_cut(stages)}, of stride {stride}, {_SEEN}"
    return Suggestion(found.layers[:1], reason)


def _input_or_early(stages: Stages) -> Suggestion:
    found = _early(stages)
    return found._replace(reason=f"at one of these, or on the images: {found.reason}")


def _deep(stages: Stages) -> Suggestion:
    count = len(stages.encoder)
    return _told(stages.encoder[-2:], f"the last of the encoder's {count} stages{_cut(stages)}, of strides {{}}")


def _late_decoder(stages: Stages) -> Suggestion:
    last = [c for c in stages.decoder[-2:] if c.sites > stages.bottleneck.sites] or stages.decoder[-1:]
    return _told(last, f"the last of the decoder's {len(stages.decoder)} stages before the logits, of strides {{}}")


_PLACES: dict[str, Callable[[Stages], Suggestion]] = {
    "input or early": _input_or_early,
    "first": _first,
    "early": _early,
    "encoder": _encoder,
    "deep": _deep,
    "bottleneck": _bottleneck,
    LATE: _late_decoder,
}
_SEEN = "where all that follows sees the change"


def _told(ends: list[Any], reason: str) -> Suggestion:
    return Suggestion(tuple(c.location for c in ends), reason.format(_strides(ends)))


def _strides(ends: list[Any]) -> str:
    *most, last = ["x".join(map(str, c.stride)) for c in ends] or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _cut(stages: Stages) -> str:
    return ", cut by depth as its grid is one" if stages.by_depth else ""
