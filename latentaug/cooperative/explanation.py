"""How hard examples of a batch come about, every step of it: for figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from latentaug.cooperative.stages import decoded, segmentation_at
from latentaug.tracing.isolation import preserved_modes

if TYPE_CHECKING:
    from latentaug.cooperative.model import CooperativeModel


class Explanation(NamedTuple):
    """How hard examples come about: what `CooperativeModel.explain` returns and `plot_hard_examples` plots.

    Example:
        >>> from latentaug import FTN, CooperativeModel
        >>> images, labels = torch.rand(2, 1, 16, 16), torch.randint(4, (2, 16, 16))
        >>> found = CooperativeModel(FTN(width=2, depth=2), num_classes=4, example=images).explain(images, labels)
        >>> found.hard_images.shape, found.hard_segmentation.shape, found.shape_saliency.shape
        (torch.Size([2, 1, 16, 16]), torch.Size([2, 4, 16, 16]), torch.Size([2, 16, 4, 4]))
    """

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


def explained(
    model: CooperativeModel, images: Tensor, labels: Tensor, generator: torch.Generator | None
) -> Explanation:
    """Make hard examples of a batch in eval mode, without noise, and return every step of their making."""
    maker, losses = model.maker, model.objective.losses()
    with preserved_modes(model), torch.enable_grad(), model.eval().tapped() as taps:
        for transform in (model.image_transform, model.shape_transform):
            transform.train()  # most act in train mode only
        predicted = model.reader.read(model.model(images), images.shape[2:], [*taps.codes.values()])
        losses.add("segmentation", predicted.loss(model.loss, labels))
        reconstructed = None
        if model.reconstruction is not None:
            reconstructed = decoded(model, taps, images, losses)
        image_code, shape_codes = maker.codes(taps, losses, generator)

        def loss(decoded: Tensor) -> Tensor:
            with taps.aside():
                return segmentation_at(model, decoded, labels)

        hard_images = None
        if image_code is not None and model.reconstruction is not None and reconstructed is not None:
            hard_images = maker.images(image_code, model.reconstruction, images, reconstructed, generator, loss)
        hard_segmentation = maker.segmentations(taps, shape_codes, images.shape[2:]).main
        deepest = max(shape_codes, key=lambda one: math.prod(one.location.stride))
        image_saliency, image_factor = (None, None) if image_code is None else image_code.shown()
        return Explanation(
            image_saliency,
            image_factor,
            hard_images,
            predicted.main.detach(),
            *deepest.shown(),
            hard_segmentation,
            model.refine(hard_segmentation).detach(),
        )
