"""What cooperative training returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class CooperativeOutput(NamedTuple):
    """What a `CooperativeModel` returns for images with labels.

    Example:
        >>> import torch
        >>> from latentaug import FTN, CooperativeModel
        >>> images, labels = torch.rand(2, 1, 16, 16), torch.randint(4, (2, 16, 16))
        >>> output = CooperativeModel(FTN(width=2, depth=2), num_classes=4, example=images)(images, labels)
        >>> bool(torch.isclose(output.loss, sum(output.losses.values())))
        True
        >>> sorted(output.losses)[:2], output.logits.shape
        (['hard_image_reconstruction', 'hard_image_segmentation'], torch.Size([2, 4, 16, 16]))
    """

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

    def __repr__(self) -> str:
        losses = ", ".join(f"{name}={_shown(loss)}" for name, loss in self.losses.items())
        rest = [f"{name}={_shown(getattr(self, name))}" for name in self._fields[2:]]
        return f"CooperativeOutput(loss={_shown(self.loss)}, losses=({losses}), {', '.join(rest)})"


def _shown(value: Tensor | None) -> str:
    """Show a scalar by its value, which the host waits for, and any other tensor by its shape."""
    if value is None:
        return "None"
    if value.numel() != 1 or value.is_meta:
        return str(list(value.shape))
    return f"{value.item():.4g}"


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
