"""Mix samples of a batch, and their labels."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from latentaug.augment.base import Context, Criterion, LatentTransform
from latentaug.augment.ranges import Range, as_range
from latentaug.augment.style import at_least_float32, moments, restyled
from latentaug.checks import number

Statistics = Literal["positional", "instance", "layer"]
"""What a mean and a deviation are taken over; see `MoEx`."""

Labels = Literal["mix", "keep"]
"""Whether labels mix as codes do."""


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
        TypeError: An argument is of another kind.

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
        self.alpha = number("alpha", alpha, above=0)

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
        return mixed_loss(criterion, logits, labels, **params)


class MoEx(LatentTransform):
    """Exchange the moments of samples: each is given the mean and the deviation of another one of the batch.

    Returns n·s' + m' for the normalised code n = (f - m) / s, where m' and s' are the partner's (moment exchange).
    Gradients reach both samples. Train on the `loss` of the change: λ · L(y) + (1 - λ) · L(y').

    Args:
        statistics: What moments are taken over. "positional" takes those of each spatial position over its channels,
            as the paper does: they show shapes, which labels go with. "instance" takes those of each channel over its
            positions, the style; "layer" those of the whole sample.
        lam: λ, the fraction of a sample's own labels in the loss, in [0, 1]; a pair is sampled from uniformly. Default
            0.9, as in the paper.
        labels: Whether the losses of labels "mix", or all "keep" their own. Where labels are dense and only style is
            exchanged, the partner's say nothing about what is where.
        p: Chance that it acts, in [0, 1]. Default 0.5.
        detach_statistics: Whether means and deviations are constants in the backward pass.
        eps: Added to variances.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, the partners and λ, once per batch; from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    References:
        Li et al., CVPR 2021, arXiv:2002.11102.

    Example:
        >>> code, labels = torch.randn(4, 8, 6, 6), torch.tensor([0, 1, 2, 0])
        >>> change = MoEx(p=1)(code, generator=torch.Generator().manual_seed(0))
        >>> logits = change.apply(code).mean((2, 3))
        >>> change.loss(torch.nn.functional.cross_entropy, logits, labels).ndim
        0
    """

    needs_partner = True
    place = "first"

    def __init__(
        self,
        statistics: Statistics = "positional",
        lam: Range = 0.9,
        *,
        labels: Labels = "mix",
        p: Range = 0.5,
        detach_statistics: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(p=p)
        for name, value, known in (("statistics", statistics, Statistics), ("labels", labels, Labels)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(known)))}; got {value!r}.")
        self.statistics = statistics
        self.lam = as_range("lam", lam)
        self.labels = labels
        self.detach_statistics = detach_statistics
        self.eps = number("eps", eps, above=0)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the partners, and λ: the fraction of a sample's own labels."""
        return {"order": context.permutation(len(code)), "own": context.uniform(self.lam)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Exchange means and deviations."""
        order: Tensor = params["order"]
        values, everything = at_least_float32(code), tuple(range(1, code.ndim))
        axes = {"positional": everything[:1], "instance": everything[1:], "layer": everything}[self.statistics]
        mean, deviation = moments(values, self.eps, axes=axes, detach=self.detach_statistics)
        return restyled(values, mean, deviation, mean[order], deviation[order])

    def loss(self, criterion: Criterion, logits: Tensor, labels: Tensor, **params: Any) -> Tensor:
        """Return λ times the loss of the samples' own labels and 1 - λ times that of their partners'."""
        return criterion(logits, labels) if self.labels == "keep" else mixed_loss(criterion, logits, labels, **params)


def mixed_loss(criterion: Criterion, logits: Tensor, labels: Tensor, *, order: Tensor, own: Tensor) -> Tensor:
    """Return `own` times the loss of the samples' own labels, and the rest times that of their partners'."""
    return own * criterion(logits, labels) + (1 - own) * criterion(logits, labels[order.to(labels.device)])
