"""Mix samples of a batch, and their labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentaug.augment.base import Context, Criterion, LatentTransform
from latentaug.augment.ranges import Range


class ManifoldMixup(LatentTransform):
    """Mix every sample of a batch with another one, at a code, and mix the losses of their labels alike.

    Returns λf + (1 - λ)f' for a sample f and its partner f'. In a replay, or within `augmented`, all that was computed
    before the code and is read after it is mixed by the same λ and partners: skip connections and prefix tokens too,
    and the image itself. Train on the `loss` of the change: λ · L(y) + (1 - λ) · L(y').

    Args:
        alpha: Both parameters of the beta distribution of λ. Default 2, as in the paper.
        p: Chance that it acts, in [0, 1].

    Shape:
        code: [B, …].   output: the same.

    Samples:
        Whether to act, the partners and λ, once per batch; from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.

    References:
        Verma et al., ICML 2019, arXiv:1806.05236.

    Example:
        >>> from latentaug import LatentTap
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 2, 2), torch.nn.ConvTranspose2d(4, 3, 2, 2))
        >>> images, labels = torch.randn(2, 1, 8, 8), torch.randint(3, (2, 8, 8))
        >>> with LatentTap(model, "0") as tap:
        ...     logits = model(images)
        ...     change = tap.draw(ManifoldMixup())
        ...     loss = change.loss(torch.nn.functional.cross_entropy, tap.replay(change), labels)
        >>> loss.ndim
        0
    """

    needs_partner = True
    whole_pass = True
    place = "input or early"

    def __init__(self, alpha: float = 2.0, *, p: Range = 1.0) -> None:
        super().__init__(p=p)
        if not alpha > 0:
            raise ValueError(f"alpha must be above 0; got {alpha}. The paper takes 2.")
        self.alpha = float(alpha)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the partners, and λ: the fraction that is a sample's own."""
        return {"order": context.permutation(len(code)), "own": context.beta(self.alpha, self.alpha)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Mix the samples of any tensor whose first axis is the batch."""
        own = params["own"].to(torch.promote_types(code.dtype, torch.float32))
        mixed: Tensor = own.to(code.dtype) * code + (1 - own).to(code.dtype) * code[params["order"]]
        return mixed

    def loss(self, criterion: Criterion, logits: Tensor, labels: Tensor, **params: Any) -> Tensor:
        """Return λ times the loss of the samples' own labels and 1 - λ times that of their partners'."""
        own: Tensor = params["own"]
        order: Tensor = params["order"]
        return own * criterion(logits, labels) + (1 - own) * criterion(logits, labels[order.to(labels.device)])
