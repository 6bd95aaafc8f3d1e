"""Style: the mean and the deviation of each channel of each sample, exchanged between samples."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.ranges import Range

Partner = Literal["random", "crossdomain"]
"""Whose style a sample is given: anybody's, or that of a sample from the other half of the batch."""


class MixStyle(LatentTransform):
    """Give samples a style between their own and that of another sample of the batch.

    Takes the mean μ and the deviation σ of each channel, and returns n·(λσ + (1 - λ)σ') + λμ + (1 - λ)μ' for the
    normalised code n = (f - μ) / σ, where μ' and σ' are the partner's. No gradient passes through μ and σ.

    Early layers hold style: tap the module itself ("encoder.layer1"), so that all that follows sees the change. Tapping
    an index of a list of features ("encoder[2]") changes the skip connection only.

    Args:
        p: Chance that it acts, in [0, 1]. Default 0.5, as in the paper.
        alpha: Both parameters of the beta distribution of λ. Default 0.1, as in the paper: mostly one of the two.
        partner: "random" takes any sample; "crossdomain" one from the other half of the batch, for batches whose halves
            are from two domains.
        per_sample: Whether to sample for each sample whether it acts, and not once for the batch.
        detach_statistics: Whether means and deviations are constants in the backward pass, as in the paper.
        eps: Added to variances, as in the authors' code.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, the partners once per batch, λ for each sample; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.

    References:
        Zhou et al., ICLR 2021, arXiv:2104.02008.

    Example:
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = MixStyle(p=1)(code, generator=torch.Generator().manual_seed(0))
        >>> change.params["own"].shape, change.apply(code).shape
        (torch.Size([4]), torch.Size([4, 8, 6, 6]))
    """

    needs_partner = True
    place = "early"

    def __init__(
        self,
        p: Range = 0.5,
        alpha: float = 0.1,
        *,
        partner: Partner = "random",
        per_sample: bool = False,
        detach_statistics: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        if not alpha > 0:
            raise ValueError(f"alpha must be above 0; got {alpha}. The paper takes 0.1.")
        if partner not in get_args(Partner):
            raise ValueError(f"partner must be one of {', '.join(map(repr, get_args(Partner)))}; got {partner!r}.")
        if not eps > 0:
            raise ValueError(f"eps must be above 0; got {eps}.")
        self.alpha = float(alpha)
        self.partner = partner
        self.detach_statistics = detach_statistics
        self.eps = eps

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the partners, and λ: the fraction that is a sample's own."""
        batch = len(code)
        order = context.permutation(batch) if self.partner == "random" else _across(batch, context)
        return {"order": order, "own": context.beta(self.alpha, self.alpha, batch)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Exchange means and deviations."""
        order: Tensor = params["order"]
        values = at_least_float32(code)
        mean, deviation = moments(values, self.eps)
        if self.detach_statistics:
            mean, deviation = mean.detach(), deviation.detach()
        own = params["own"].to(values.dtype).view(-1, *[1] * (code.ndim - 1))
        new_mean, new_deviation = (own * one + (1 - own) * one[order] for one in (mean, deviation))
        changed: Tensor = (values - mean) / deviation * new_deviation + new_mean
        return changed


def moments(code: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel of each sample over its spatial positions.

    The deviation is the root of the unbiased variance plus `eps`. A single position has a variance of 0.

    Shape:
        code: [B, C, *S].   mean, deviation: [B, C, 1, …].
    """
    axes = tuple(range(2, code.ndim))
    variance = code.var(axes, keepdim=True, correction=min(1, math.prod(code.shape[2:]) - 1))
    return code.mean(axes, keepdim=True), (variance + eps).sqrt()


def at_least_float32(code: Tensor) -> Tensor:
    """Return a code in the precision that statistics need."""
    return code.to(torch.promote_types(code.dtype, torch.float32))


def _across(batch: int, context: Context) -> Tensor:
    """Sample an order that takes the first half of a batch from the second, and the second from the first."""
    first, second = context.permutation(batch // 2), context.permutation(batch - batch // 2) + batch // 2
    return torch.cat([second, first])
