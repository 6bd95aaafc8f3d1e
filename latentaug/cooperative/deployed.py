"""What is left of a cooperative model when training is over: the network, and the shape prior if it is wanted."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from latentaug.cooperative.logits import LogitsReader
from latentaug.nets.heads import ShapePrior
from latentaug.tracing.location import unwrap
from latentaug.tracing.tree import tensors_in

if TYPE_CHECKING:
    from latentaug.cooperative.model import CooperativeModel

T = TypeVar("T")


class DeployedModel(nn.Module):
    """Return the logits of images, one tensor at their size: for `torch.export`, ONNX and serving.

    Args:
        model: The segmentation network; its state dict is under "model.".
        reader: Reads the logits from what it returns.
        shape_prior: Corrects them; its state dict is under "shape_prior.".
        refine: How many times.

    Shape:
        images: [B, C, *S].   output: [B, num_classes, *S].
    """

    def __init__(self, model: nn.Module, reader: LogitsReader, shape_prior: ShapePrior | None, refine: int) -> None:
        super().__init__()
        self.model = model
        self.shape_prior = shape_prior
        self.refine = refine
        self._reader = reader

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images, corrected if they are to be."""
        return corrected(self.shape_prior, self._reader.main(self.model(images), images.shape[2:]), self.refine)

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        return f"refine={self.refine}"


def corrected(prior: ShapePrior | None, logits: Tensor, steps: int) -> Tensor:
    """Correct logits by a shape prior, if there is one; every step reads the last one's result."""
    if prior is not None:
        for _ in range(steps):
            logits = prior.refine(logits)
    return logits


def deployed(model: CooperativeModel, refine: int) -> DeployedModel:
    """Copy what a cooperative model predicts with, in eval mode and without gradients."""
    prior = model.shape_prior if refine else None
    parts = _copied(unwrap(model.model)), _copied(model.reader), _copied(prior)
    return DeployedModel(*parts, refine if prior is not None else 0).eval().requires_grad_(False)


def _copied(part: T) -> T:
    """Copy a part of a model, also one that keeps tensors of its last pass, which have a graph."""
    memo: dict[int, Any] = {}
    for module in part.modules() if isinstance(part, nn.Module) else ():
        memo |= {id(one): one.detach().clone() for _, one in tensors_in(vars(module)) if not one.is_leaf}
    return copy.deepcopy(part, memo)
