"""Style: the mean and the deviation of each channel of each sample, exchanged between samples or sampled anew."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.ranges import Range, as_range
from latentaug.checks import number

Partner = Literal["random", "crossdomain"]
"""Whose style a sample is given: anybody's, or that of a sample from the other half of the batch."""


class StyleMixer(LatentTransform):
    """Mix each sample's style with a partner's: what `MixStyle` and `EFDMix` sample, and check."""

    needs_partner = True
    place = "early"

    def __init__(
        self, p: Range = 0.5, alpha: float = 0.1, *, partner: Partner = "random", per_sample: bool = False
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        if partner not in get_args(Partner):
            raise ValueError(f"partner must be one of {', '.join(map(repr, get_args(Partner)))}; got {partner!r}.")
        self.alpha = number("alpha", alpha, above=0)
        self.partner = partner

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the partners, and λ: the fraction that is a sample's own."""
        batch = len(code)
        order = context.permutation(batch) if self.partner == "random" else _across(batch, context)
        return {"order": order, "own": context.beta(self.alpha, self.alpha, batch)}


class MixStyle(StyleMixer):
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
        TypeError: An argument is of another kind.

    References:
        Zhou et al., ICLR 2021, arXiv:2104.02008.

    Example:
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = MixStyle(p=1)(code, generator=torch.Generator().manual_seed(0))
        >>> change.params["own"].shape, change.apply(code).shape
        (torch.Size([4]), torch.Size([4, 8, 6, 6]))
    """

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
        super().__init__(p, alpha, partner=partner, per_sample=per_sample)
        self.detach_statistics = detach_statistics
        self.eps = number("eps", eps, above=0)

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Exchange means and deviations."""
        order: Tensor = params["order"]
        values = at_least_float32(code)
        mean, deviation = moments(values, self.eps, detach=self.detach_statistics)
        own = along(params["own"], values)
        new_mean, new_deviation = (own * one + (1 - own) * one[order] for one in (mean, deviation))
        return restyled(values, mean, deviation, new_mean, new_deviation)


class DSU(LatentTransform):
    """Sample the style of each sample anew, around its own, as widely as styles differ within the batch.

    Takes the mean μ and the deviation σ of each channel of each sample, and their deviations Σμ and Σσ over the batch;
    returns n·(σ + ε'Σσ) + μ + εΣμ for the normalised code n = (f - μ) / σ, where ε and ε' are from N(0, 1). A deviation
    may become negative, which inverts the contrast. Gradients pass through all four, as in the authors' code.

    Args:
        p: Chance that it acts, in [0, 1]. Default 0.5, as in the paper.
        per_sample: Whether to sample for each sample whether it acts, and not once for the batch.
        detach_statistics: Whether means and deviations are constants in the backward pass.
        eps: Added to variances, as in the authors' code.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, ε and ε' for each channel of each sample; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    References:
        Li et al., ICLR 2022, arXiv:2202.03958.

    Example:
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = DSU(p=1)(code, generator=torch.Generator().manual_seed(0))
        >>> change.params["of_means"].shape, change.apply(code).shape
        (torch.Size([4, 8]), torch.Size([4, 8, 6, 6]))
    """

    needs_partner = True
    place = "encoder"

    def __init__(
        self, p: Range = 0.5, *, per_sample: bool = False, detach_statistics: bool = False, eps: float = 1e-6
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        self.detach_statistics = detach_statistics
        self.eps = number("eps", eps, above=0)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample ε, for the means, and ε', for the deviations."""
        return {"of_means": context.randn(*code.shape[:2]), "of_deviations": context.randn(*code.shape[:2])}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Move means and deviations."""
        values = at_least_float32(code)
        mean, deviation = moments(values, self.eps, detach=self.detach_statistics)
        new_mean, new_deviation = (
            one + along(params[name], values) * moments(one, self.eps, axes=(0,))[1]
            for name, one in (("of_means", mean), ("of_deviations", deviation))
        )
        return restyled(values, mean, deviation, new_mean, new_deviation)


class PermutedStyle(LatentTransform):
    """Give each sample the style of another sample of the batch, seldom.

    Takes the mean μ and the deviation σ of each channel, and returns n·σ' + μ' for the normalised code n = (f - μ) / σ,
    where μ' and σ' are the partner's (permuted adaptive instance normalisation). Gradients reach both samples.

    The paper puts one in front of every normalisation layer, which is why each acts in one batch of a hundred only.

    Args:
        p: Chance that it acts, in [0, 1]. Default 0.01, as in the paper.
        per_sample: Whether to sample for each sample whether it acts, and not once for the batch.
        detach_statistics: Whether means and deviations are constants in the backward pass.
        eps: Added to variances.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, the partners once per batch; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    References:
        Nuriel et al., CVPR 2021, arXiv:2010.05785.

    Example:
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = PermutedStyle(p=1)(code, generator=torch.Generator().manual_seed(0))
        >>> change.params["order"].shape, change.apply(code).shape
        (torch.Size([4]), torch.Size([4, 8, 6, 6]))
    """

    needs_partner = True
    place = "encoder"

    def __init__(
        self, p: Range = 0.01, *, per_sample: bool = False, detach_statistics: bool = False, eps: float = 1e-6
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        self.detach_statistics = detach_statistics
        self.eps = number("eps", eps, above=0)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the partners."""
        return {"order": context.permutation(len(code))}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Take the partners' means and deviations."""
        order: Tensor = params["order"]
        values = at_least_float32(code)
        mean, deviation = moments(values, self.eps, detach=self.detach_statistics)
        return restyled(values, mean, deviation, mean[order], deviation[order])


class TriD(LatentTransform):
    """Give random channels of each sample a style that is nobody's: a mean and a deviation sampled uniformly.

    About half of the channels of a sample become n·σ' + μ', for the normalised code n = (f - μ) / σ; the others stay as
    they are. No gradient passes through μ and σ. The paper samples the chance of a channel from a beta distribution of
    equal parameters, once for each channel of each sample; whatever these parameters are, that is a chance of 0.5.

    The paper samples both from U(0, 1), which suits codes of that order only, such as those after a ReLU and a
    normalisation. Pass `quantiles` for codes of any other scale.

    Args:
        p: Chance that it acts, in [0, 1]. Default 0.5, as in the paper.
        quantiles: None samples means and deviations from U(0, 1), as the paper does. A pair samples those of a channel
            uniformly between two quantiles of what the batch itself has in that channel; (0, 1) spans all of it.
        fraction: Chance of each channel, in [0, 1]; a pair is sampled from uniformly for each sample.
        per_sample: Whether to sample for each sample whether it acts, and not once for the batch.
        eps: Added to variances.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act; for each channel of each sample whether it changes, its mean and its deviation; all from
        `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: `quantiles` is no pair.

    References:
        Chen et al., MICCAI 2023, arXiv:2305.19949.

    Example:
        >>> code = torch.rand(4, 8, 6, 6)
        >>> change = TriD(p=1)(code, generator=torch.Generator().manual_seed(0))
        >>> change.params["chosen"].shape, change.apply(code).shape
        (torch.Size([4, 8]), torch.Size([4, 8, 6, 6]))
    """

    place = "early"

    def __init__(
        self,
        p: Range = 0.5,
        quantiles: tuple[float, float] | None = None,
        *,
        fraction: Range = 0.5,
        per_sample: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        if quantiles is not None and not isinstance(as_range("quantiles", quantiles), tuple):
            raise TypeError(f"quantiles must be a pair (low, high), or None; got {quantiles!r}.")
        self.quantiles = quantiles
        self.needs_partner = quantiles is not None
        self.fraction = as_range("fraction", fraction)
        self.eps = number("eps", eps, above=0)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample which channels change, and the means and deviations that they are given."""
        batch, channels = code.shape[:2]
        chosen = context.rand(batch, channels) < context.uniform(self.fraction, batch, 1)
        mean, deviation = context.rand(batch, channels), context.rand(batch, channels)
        if self.quantiles is not None:
            low, high = self.quantiles
            own = (one.flatten(1).float() for one in moments(at_least_float32(code), self.eps))
            mean, deviation = (
                torch.lerp(one.quantile(low, dim=0), one.quantile(high, dim=0), sampled)
                for one, sampled in zip(own, (mean, deviation), strict=True)
            )
        return {"chosen": chosen, "mean": mean, "deviation": deviation}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Exchange the means and deviations of the channels that were chosen."""
        chosen: Tensor = params["chosen"]
        values = at_least_float32(code)
        mean, deviation = moments(values, self.eps, detach=True)
        sampled = along(params["mean"], values), along(params["deviation"], values)
        changed = restyled(values, mean, deviation, *sampled)
        return torch.where(chosen.view(*chosen.shape, *[1] * (code.ndim - 2)), changed, values)


def moments(
    code: Tensor, eps: float, *, axes: tuple[int, ...] | None = None, detach: bool = False
) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel of each sample over its spatial positions, or over other axes.

    The deviation is the root of the unbiased variance plus `eps`. A single position has a variance of 0.

    Shape:
        code: [B, C, *S].   mean, deviation: [B, C, 1, …].
    """
    code = code.detach() if detach else code
    axes = tuple(range(2, code.ndim)) if axes is None else axes
    variance = code.var(axes, keepdim=True, correction=min(1, math.prod([code.shape[axis] for axis in axes]) - 1))
    return code.mean(axes, keepdim=True), (variance + eps).sqrt()


def restyled(values: Tensor, mean: Tensor, deviation: Tensor, new_mean: Tensor, new_deviation: Tensor) -> Tensor:
    """Give a code another mean and deviation, in as few passes over it as can be.

    Shape:
        values: [B, C, *S].   all others: broadcastable to it.
    """
    return torch.addcmul(new_mean, values - mean, new_deviation / deviation)


def along(sampled: Tensor, code: Tensor) -> Tensor:
    """Show what was sampled for each sample, or for each channel of each, such that it broadcasts over a code."""
    return sampled.to(code.dtype).view(*sampled.shape, *[1] * (code.ndim - sampled.ndim))


def at_least_float32(code: Tensor) -> Tensor:
    """Return a code in the precision that statistics need."""
    return code.to(torch.promote_types(code.dtype, torch.float32))


def full_precision(code: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast doesn't round what is computed, or let it overflow."""
    kind = code.device.type
    works = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if works else nullcontext()


def _across(batch: int, context: Context) -> Tensor:
    """Sample an order that takes the first half of a batch from the second, and the second from the first."""
    first, second = context.permutation(batch // 2), context.permutation(batch - batch // 2) + batch // 2
    return torch.cat([second, first])
