"""Which codes a model is trained on unless told otherwise: a fine one for images, the bottleneck for segmentations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from latentaug.checks import called_on_example
from latentaug.discovery.bottleneck import ranked
from latentaug.discovery.candidates import Candidate
from latentaug.tracing.location import Location, as_inputs, unwrap
from latentaug.tracing.record import ancestors

FINE = 8
"""Largest stride of a fine code, along any axis. What a U-Net's deeper codes hold of an image decodes to mush, as its
skip connections carry the details: see `docs/explanation/which-code.md`."""

FINEST_LEVEL = 2
"""Levels of an encoder up to this stride are left alone: they hold the image's details, and little else."""


class Codes(NamedTuple):
    """The layers that images and segmentations are decoded from: what `find_codes` returns.

    Attributes:
        image: Where the code is that images are decoded from.
        shape: Where the code is that segmentations are decoded from.

    Example:
        >>> import torch
        >>> from latentaug import FTN
        >>> codes = find_codes(FTN(width=2, depth=2), torch.rand(1, 1, 32, 32))
        >>> codes.shape.stride, codes.shape.shape
        ((4, 4), (1, 16, 8, 8))
    """

    image: Location
    shape: Location


def find_codes(model: nn.Module, example: Tensor, *, logits: Callable[[Any], Any] | None = None) -> Codes:
    """Find the code to decode images from, and the code to decode segmentations from, by a few dry runs.

    Segmentations are decoded from the bottleneck. Images are decoded from the coarsest code that all of the bottleneck
    is computed from and whose stride is at most 8 along each axis, in the outermost module that returns one. Where
    there is none, as in a transformer whose patches are larger, or where the bottleneck itself is so fine, they are
    decoded from the bottleneck too.

    Args:
        model: Any segmentation model.
        example: A batch of images [B, C, *S].
        logits: Reads from the model's output what must depend on the code, as in `find_bottleneck`.

    Raises:
        ValueError: No submodule returns a code that is coarser than the input.

    Example:
        >>> import torch
        >>> down = (nn.Conv2d(1, 8, 8, 8), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1))
        >>> codes = find_codes(nn.Sequential(*down, nn.Upsample(scale_factor=32)), torch.randn(1, 1, 64, 64))
        >>> str(codes.image), str(codes.shape)
        ('0', '2')
    """
    with called_on_example("find_codes", model, example):
        bottleneck, *others = ranked(unwrap(model), *as_inputs(example), logits)
    return Codes(fine_code(bottleneck, others).location, bottleneck.location)


def find_levels(model: nn.Module, example: Tensor, *, logits: Callable[[Any], Any] | None = None) -> list[Location]:
    """Find the codes that a decoder reads at once: the bottleneck, and the finer levels that come with it.

    Encoders that return a list of levels, as those of segmentation-models-pytorch do, have several: all that the
    decoder reads, at strides above 2. Where the bottleneck is returned alone, it is the only one.

    Args:
        model: Any segmentation model.
        example: A batch of images [B, C, *S].
        logits: Reads from the model's output what must depend on the code, as in `find_bottleneck`.

    Returns:
        The levels, fine to coarse; the last is what `find_bottleneck` finds.

    Raises:
        ValueError: No submodule returns a code that is coarser than the input.

    Example:
        >>> import torch
        >>> down = (nn.Conv2d(1, 8, 8, 8), nn.Conv2d(8, 16, 3, 2, 1))
        >>> levels = find_levels(nn.Sequential(*down, nn.Upsample(scale_factor=16)), torch.rand(1, 1, 64, 64))
        >>> [str(level) for level in levels]
        ['1']
    """
    with called_on_example("find_levels", model, example):
        bottleneck, *others = ranked(unwrap(model), *as_inputs(example), logits)
    return [level.location for level in levels(bottleneck, others)]


def levels(bottleneck: Candidate, others: Sequence[Candidate]) -> list[Candidate]:
    """Return what the call that returns the bottleneck returns with it, as far as it is read by what follows."""
    found = [bottleneck]
    together = [c for c in others if c.call is bottleneck.call and max(c.stride) > FINEST_LEVEL]
    for one in sorted(together, key=lambda c: (c.sites, -len(ancestors([c.node])))):
        deeper = {level.node for level in found}
        if one.node not in deeper and one.node in bottleneck.ways.leading_past(deeper):
            found.append(one)
    return found[::-1]


def fine_code(bottleneck: Candidate, others: Sequence[Candidate]) -> Candidate:
    """Return the coarsest fine code that all of the bottleneck is computed from; the bottleneck where there is none."""
    if max(bottleneck.stride) <= FINE:
        return bottleneck
    before = ancestors([bottleneck.node])
    fine = [c for c in others if c.node in before and c.learned and max(c.stride) <= FINE]
    fine.sort(key=lambda c: (c.sites, c.call.depth, _may_be_skipped(c), -len(ancestors([c.node]))))
    return next((c for c in fine if bottleneck.ways.all_over(c.node, bottleneck.node)), bottleneck)


def _may_be_skipped(candidate: Candidate) -> bool:
    """Tell whether a call returns what it is given in shape, as blocks do that stochastic depth leaves out."""
    return tuple(candidate.tensor.shape) in candidate.call.given
