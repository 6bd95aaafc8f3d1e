"""What cooperative training returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class CooperativeOutput(NamedTuple):
    """What a `CooperativeModel` returns for images with labels."""

    loss: Tensor
    """Sum of `losses`."""
    losses: dict[str, Tensor]
    """Every term, times its weight."""
    logits: Tensor
    """The model's logits of the (noisy) images, at the labels' size."""
    refined: Tensor
    """What the shape prior makes of them; the logits themselves where there is none."""
    hard_images: Tensor | None
    """Images decoded from the changed image code, constants; None where there are none, as in eval mode, of
    `standard_backward` and without an image decoder."""
    hard_segmentation: Tensor | None
    """Logits replayed from the changed shape code, constants; None likewise, and where no loss is computed on them."""
    hard_samples: Tensor | None = None
    """Positions in the batch of the samples that these were made of; None means all."""


class Explanation(NamedTuple):
    """How hard examples come about: what `CooperativeModel.explain` returns and `plot_hard_examples` plots."""

    image_saliency: Tensor | None
    """Gradient of the reconstruction loss with respect to the image code [B, C, *grid]; None without an image decoder.
    """
    image_factor: Tensor | None
    """Factor of the mask on it; None where the change is no mask."""
    hard_images: Tensor | None
    """Images decoded from the changed image code; None without an image decoder."""
    logits: Tensor
    """The model's logits of the images themselves."""
    shape_saliency: Tensor
    """Gradient of the segmentation loss with respect to the (deepest) shape code."""
    shape_factor: Tensor | None
    """Factor of the mask on it; None where the change is no mask."""
    hard_segmentation: Tensor
    """Logits replayed from the changed shape codes."""
    refined: Tensor
    """What the shape prior makes of those; themselves where there is none."""

    def __repr__(self) -> str:
        return f"Explanation of {len(self.logits)} hard examples: {', '.join(self._fields)}"


def joined(standard: CooperativeOutput, hard: CooperativeOutput) -> CooperativeOutput:
    """Put what the two stages return together: all losses, and the rest from the standard stage."""
    return standard._replace(loss=standard.loss + hard.loss, losses={**standard.losses, **hard.losses})


def detached(output: CooperativeOutput) -> CooperativeOutput:
    """Cut everything off its graph."""
    return output._replace(
        loss=output.loss.detach(),
        losses={name: term.detach() for name, term in output.losses.items()},
        logits=output.logits.detach(),
        refined=output.refined.detach(),
    )
