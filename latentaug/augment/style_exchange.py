"""Style beyond the mean and the deviation of whole channels: exchanged by rank, or between boxes."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.boxes import inside, sampled_boxes
from latentaug.augment.ranges import Range, as_share
from latentaug.augment.style import StyleMixer, along, at_least_float32, moments, restyled
from latentaug.checks import number

Crop = Literal["neither", "style", "content", "both"]
"""Of whom a box stands for the whole: of nobody, of the partner, of the sample itself, or of both."""


class EFDMix(StyleMixer):
    """Give samples a distribution of values between their own and that of another sample of the batch.

    Matches the partner's sorted values to a sample's ranks, channel by channel, which gives m; and returns
    f + (1 - λ)(m - f), where f in the brackets is a constant: the gradient reaches the sample as if it were unchanged,
    and the partner through m (exact feature distribution mixing). Equal values are ranked by their position.

    Args:
        p: Chance that it acts, in [0, 1]. Default 0.5, as in the paper.
        alpha: Both parameters of the beta distribution of λ. Default 0.1, as in the paper: mostly one of the two.
        partner: "random" takes any sample; "crossdomain" one from the other half of the batch, for batches whose halves
            are from two domains.
        per_sample: Whether to sample for each sample whether it acts, and not once for the batch.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, the partners once per batch, λ for each sample; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    References:
        Zhang et al., CVPR 2022, arXiv:2203.07740.

    Example:
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = EFDMix(p=1)(code, generator=torch.Generator().manual_seed(0))
        >>> change.params["own"].shape, change.apply(code).shape
        (torch.Size([4]), torch.Size([4, 8, 6, 6]))
    """

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Exchange values of equal rank."""
        flat = at_least_float32(code).flatten(2)
        ordered, places = flat.sort(dim=2, stable=True)
        matched = torch.zeros_like(flat).scatter(2, places, ordered[params["order"]])
        changed: Tensor = flat + (1 - along(params["own"], flat)) * (matched - flat.detach())
        return changed.reshape(code.shape)


class CrossNorm(LatentTransform):
    """Give each sample the style of another sample of the batch, or of a box in it.

    Takes the mean μ and the deviation σ of each channel, and returns n·σ' + μ' for the normalised code n = (f - μ) / σ,
    where μ' and σ' are the partner's. With a box of its own, a sample is normalised and changed within that box only;
    with one of the partner's, the style is what is found in there. Gradients reach both samples.

    Args:
        crop: What boxes are taken of: "neither", the partner ("style"), the sample itself ("content"), or "both".
            Default "neither", as in the authors' scripts.
        p: Chance that it acts, in [0, 1]. Default 0.5, as in the authors' scripts.
        beta: Both parameters of the beta distribution of a box's fraction of the positions. Default 1, uniform, as in
            the authors' code.
        least: The smallest fraction: the distribution is stretched from [0, 1] to [`least`, 1]. Default 0.1. For a
            uniform one that is the same as sampling until it is large enough, as the authors' code does.
        per_sample: Whether to sample for each sample whether it acts, and not once for the batch.
        detach_statistics: Whether means and deviations are constants in the backward pass.
        eps: Added to variances.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, the partners once per batch, the boxes for each sample: of the code's proportions, rounded up,
        and wholly within it; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    References:
        Tang et al., ICCV 2021, arXiv:2102.02811.

    Example:
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = CrossNorm("both", p=1)(code, generator=torch.Generator().manual_seed(0))
        >>> sorted(change.params), change.apply(code).shape
        (['content', 'order', 'style'], torch.Size([4, 8, 6, 6]))
    """

    needs_partner = True
    place = "early"

    def __init__(
        self,
        crop: Crop = "neither",
        *,
        p: Range = 0.5,
        beta: float = 1.0,
        least: float = 0.1,
        per_sample: bool = False,
        detach_statistics: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        if crop not in get_args(Crop):
            raise ValueError(f"crop must be one of {', '.join(map(repr, get_args(Crop)))}; got {crop!r}.")
        self.crop = crop
        self.beta = number("beta", beta, above=0)
        self.least = as_share("least", least)
        self.detach_statistics = detach_statistics
        self.eps = number("eps", eps, above=0)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the partners, and the boxes: "content" in the samples, "style" in their partners."""
        size = code.shape[2:]
        params = {"order": context.permutation(len(code))}
        for name in ("content", "style"):
            if self.crop in (name, "both"):
                fraction = self.least + (1 - self.least) * context.beta(self.beta, self.beta, len(code))
                params[name] = sampled_boxes(size, fraction ** (1 / len(size)), context)
        return params

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Exchange means and deviations, within the boxes if there are any."""
        values, size = at_least_float32(code), code.shape[2:]
        content, style = (inside(params[name], size) if name in params else None for name in ("content", "style"))
        mean, deviation = self._moments(values, content)
        new_mean, new_deviation = self._moments(values[params["order"]], style)
        changed = restyled(values, mean, deviation, new_mean, new_deviation)
        return changed if content is None else torch.where(content, changed, values)

    def _moments(self, values: Tensor, within: Tensor | None) -> tuple[Tensor, Tensor]:
        if within is None:
            return moments(values, self.eps, detach=self.detach_statistics)
        values, axes = values.detach() if self.detach_statistics else values, tuple(range(2, values.ndim))
        count = within.sum(axes, keepdim=True)
        mean = torch.where(within, values, 0).sum(axes, keepdim=True) / count
        squares = torch.where(within, values - mean, 0).square().sum(axes, keepdim=True)
        return mean, (squares / (count - 1).clamp_min(1) + self.eps).sqrt()
