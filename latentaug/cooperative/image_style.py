"""Hard images by their style: levels of the image decoder are changed, and not the code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from latentaug.augment.base import LatentTransform
from latentaug.layout import CHANNELS_FIRST
from latentaug.nets.heads import ReconstructionHead
from latentaug.tap.latent_tap import LatentTap
from latentaug.tracing.location import Location

LEVELS = 2
"""How many of the last levels are changed by default, besides the image itself."""


def check_style(style: object) -> LatentTransform:
    """Return a transform of levels of the image decoder.

    Raises:
        TypeError: It is none, or asks for what there is not.
    """
    if not isinstance(style, LatentTransform):
        raise TypeError(f"style must be a transform, such as MaxStyle(); got {style!r}.")
    if style.whole_pass:
        raise TypeError(f"style must change levels of the image decoder; {type(style).__name__} mixes labels too.")
    if needs := {*style.needs} - {"saliency", "loss_at"}:
        raise TypeError(f"style must ask for no more than a saliency and a loss; got one that asks for {min(needs)}.")
    return style


def style_layers(decoder: nn.Module, layers: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the levels that are changed: those named, or the last two and the image itself.

    Raises:
        ValueError: The decoder has no such submodule, or is of a kind of one's own and none was named.
    """
    if layers is not None:
        known = dict(decoder.named_modules(remove_duplicate=False))
        for name in layers:
            if name not in known:
                raise ValueError(f"style_layers needs submodules of {type(decoder).__name__}; got {name!r}.")
        return tuple(layers)
    if not isinstance(decoder, ReconstructionHead):
        raise ValueError(
            f"HardExamples(style=) needs style_layers, names of submodules of the image decoder, for a "
            f"{type(decoder).__name__}. Pass them."
        )
    blocks = len(decoder.decoder.blocks)
    return (*(f"decoder.blocks.{i}" for i in range(max(blocks - LEVELS, 0), blocks)), "")


def styled(
    decoder: nn.Module,
    code: Tensor,
    size: Sequence[int],
    style: LatentTransform,
    layers: Sequence[str],
    loss: Callable[[Tensor], Tensor],
    generator: torch.Generator | None,
) -> Tensor:
    """Decode an image code, with the levels of the decoder changed; without a graph.

    Args:
        decoder: The image decoder (code, size) -> images.
        code: The image code, as it is.
        size: Spatial size of the images.
        style: What changes the levels.
        layers: Their names.
        loss: Returns the loss of the segmentation of decoded images: what adversarial styles climb.
        generator: Source of the random numbers.
    """
    spots = [Location(name, (), CHANNELS_FIRST, (), ()) for name in layers]  # as in the image, whatever the code does
    with torch.enable_grad(), LatentTap(decoder, spots) as tap:
        decoder(code.detach(), size)
        changes = tap.draw(style, objective=loss, generator=generator)
        with torch.no_grad():
            images: Tensor = tap.replay(changes)
    return images
