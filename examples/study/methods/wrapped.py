"""`CooperativeModel` as a network of one's own is wrapped: by its own losses, with one thing changed in each.

The paper's network has the paper's form in all of them, so that the first two are `cooperative` there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentaug import RSC, HardExamples, MaxStyle, PermutedStyle, cooperative_backward
from study.methods.method import Method


def by_itself(
    title: str, reference: str = "", *, reconstructs: bool = False, start: float = 0.0, **options: Any
) -> Method:
    """Return the method of `CooperativeModel` as it is by default, of a network that is not the paper's."""
    return Method(
        title,
        reference,
        cooperative_backward,
        options,
        start=start,
        heads=False,
        reconstructs=reconstructs,
        refines=False,
    )


WRAPPED: Mapping[str, Method] = {
    "default": by_itself("the network alone, and its replay from masked levels of its encoder, in every third batch"),
    "hard-codes": by_itself(
        "the network alone, and its replay from masked levels of its encoder, in every batch",
        hard=HardExamples(every=1),
    ),
    "hard-styles": by_itself(
        "the network alone, and its replay from levels in the style of other samples, in every third batch",
        augment=PermutedStyle(p=1),
    ),
    "rsc": by_itself(
        "the network alone, and its replay without what speaks most for the right answer, in every batch",
        "Huang et al., ECCV 2020, arXiv:2007.02454",
        hard=HardExamples(every=1),
        augment=RSC(),
    ),
    "maxstyle": by_itself(
        "the network alone, and hard images of an image decoder in the style that it is worst at, in every third batch",
        "Chen et al., MICCAI 2022, arXiv:2206.01737",
        hard=HardExamples(style=MaxStyle()),
        reconstruction=True,
        reconstructs=True,
    ),
    "late": by_itself("the network alone for a third of the training, and as `default` after it", start=1 / 3),
    "mixed": by_itself(
        "hard images, of an image decoder at half the resolution, in the place of half of the batch",
        hard=HardExamples(mix=0.5),
        reconstruction=True,
        reconstructs=True,
    ),
    "mixed-quarter": by_itself(
        "the same in the place of a quarter of the batch",
        hard=HardExamples(mix=0.25),
        reconstruction=True,
        reconstructs=True,
    ),
}
"""Methods that cost little more than the network alone."""
