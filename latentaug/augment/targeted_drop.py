"""Drop what a model relies on most, by the gradient of its loss, so that it learns to do without."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from latentaug.augment.base import Context
from latentaug.augment.drop import clipped_block, grown
from latentaug.augment.masks import Masker, Score, averaged, is_informative, rank_at, scored, top_mask
from latentaug.augment.ranges import Range, as_range, as_share
from latentaug.checks import whole

Axis = Literal["random", "channel", "spatial"]
"""What is dropped: channels, spatial positions, or either, each as likely."""


class RSC(Masker):
    """Drop the channels, or the spatial positions, that speak for the right answer the most; in train mode only.

    Representation self-challenging: the weight w of a channel is the mean over its positions of minus the saliency.
    Scores channels by w, and positions by the sum over channels of w·f, and drops the int(n · fraction) highest of the
    n scores. The paper differentiates the logit of the true class: a loss falls where that rises, hence the minus. A
    sample whose scores are all zero or not finite stays as it is.

    Args:
        fraction: Fraction of channels, or of positions, to drop, in [0, 1]; a pair is sampled from uniformly. Default
            1/3, as in the paper.
        axis: What is dropped: "channel", "spatial", or "random", either, as in the paper.
        samples: Fraction of the samples that are changed, in [0, 1], rounded up: those whose loss the mask raises most.
            Default None: all of them. The paper takes 1/3, by the fall in probability. The rise of one sample's loss is
            measured by masking that sample alone, which costs one replay for each sample; it is exact where the loss is
            a mean over samples and the model keeps them apart (batch normalisation in train mode doesn't).

    Shape:
        code, saliency: [B, C, *S] (any layout given by `layout`).   factor: [B, C, 1, …], or [B, 1, *S].

    Samples:
        The axis once per batch, as a Python number (with a generator on a GPU the host waits for it), then `fraction`
        once per batch; from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range; the saliency is missing or misshapen; or `samples` needs a `loss_at`.
        TypeError: An argument is of another kind.

    References:
        Huang et al., ECCV 2020, arXiv:2007.02454.

    Example:
        >>> code, saliency = torch.rand(2, 9, 6, 6), torch.randn(2, 9, 6, 6)
        >>> mask = RSC(axis="channel")(code, saliency)
        >>> mask.factor.shape, (mask.factor == 0).sum(1).flatten()
        (torch.Size([2, 9, 1, 1]), tensor([3, 3]))
    """

    acts_in_eval = False

    def __init__(self, fraction: Range = 1 / 3, *, axis: Axis = "random", samples: float | None = None) -> None:
        super().__init__()
        if axis not in get_args(Axis):
            raise ValueError(f"axis must be one of {', '.join(map(repr, get_args(Axis)))}; got {axis!r}.")
        self.fraction = as_range("fraction", fraction)
        self.axis = axis
        self.samples = None if samples is None else as_share("samples", samples)
        self.needs = ("saliency",) if samples is None else ("saliency", "loss_at")

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the axis, and find what has the highest scores."""
        axis = self.axis if self.axis != "random" else ("channel", "spatial")[context.choice([1.0, 1.0])]
        weight = averaged(-context.saliency(), tuple(range(2, code.ndim)))
        score = weight if axis == "channel" else (weight * code).sum(1, keepdim=True)
        self._warn_if_uninformative(score.flatten(1))
        factor = top_mask(score.flatten(1), self.fraction, 0.0, generator=context.generator).view(score.shape)
        return {"factor": factor if self.samples is None else self._hardest(self.samples, factor, code, context)}

    def _hardest(self, fraction: float, factor: Tensor, code: Tensor, context: Context) -> Tensor:
        """Keep the masks of the samples whose loss they raise most; the others get ones."""
        batch = torch.arange(len(code), device=code.device).view(-1, *[1] * (code.ndim - 1))
        alone = (torch.where(batch == i, factor, 1.0).to(code.dtype) for i in range(len(code)))
        with torch.no_grad():
            losses = torch.stack([context.loss_at(code * one) for one in alone])
        ranks = losses.argsort(descending=True).argsort()
        return torch.where(ranks.view(batch.shape) < math.ceil(fraction * len(code)), factor, 1.0)


class TargetDrop(Masker):
    """Drop a block around the peak of the most salient channels, and scale the rest of each up; in train mode only.

    Scores each channel by the mean over space of the magnitude of the saliency, or of another `score`, and takes the
    int(C · fraction) highest, one at least. In each of them drops a block around the position of the highest score, and
    multiplies what is left by the number of positions over that of those left. A sample whose saliency is all zero or
    not finite stays as it is.

    The paper scores channels by weights of squeeze and excitation, which its code never trains, and takes the peak of
    the code; the saliency says the same of the network as it is.

    Args:
        fraction: Fraction of channels, in [0, 1]; a pair is sampled from uniformly. Default 0.15, as in the paper.
        block_size: Side of a block, in positions; along an axis that is shorter, and where it is even, the largest odd
            number below is taken. Blocks at the border are cut off. Default 5.
        score: What counts as salient: "magnitude", "signed" or "harm", as for `TargetedChannelMask`.
        rescale: Whether what is left is scaled up.

    Shape:
        code, saliency: [B, C, *S] of one to three spatial axes (any layout given by `layout`).   factor: [B, C, *S].

    Samples:
        `fraction` once per batch, from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range; the saliency is missing or misshapen; or a code has more than three
            spatial axes.
        TypeError: An argument is of another kind.

    References:
        Zhu and Zhao, ICASSP 2022, arXiv:2010.10716.

    Example:
        >>> code, saliency = torch.ones(2, 20, 12, 12), torch.randn(2, 20, 12, 12)
        >>> mask = TargetDrop()(code, saliency)
        >>> mask.factor.shape, (mask.factor == 0).any(3).any(2).sum(1)
        (torch.Size([2, 20, 12, 12]), tensor([3, 3]))
    """

    acts_in_eval = False
    needs = ("saliency",)

    def __init__(
        self, fraction: Range = 0.15, block_size: int = 5, *, score: Score = "magnitude", rescale: bool = True
    ) -> None:
        super().__init__()
        if score not in get_args(Score):
            raise ValueError(f"score must be one of {', '.join(map(repr, get_args(Score)))}; got {score!r}.")
        self.fraction = as_range("fraction", fraction)
        self.block_size = whole("block_size", block_size, of="positions")
        self.score = score
        self.rescale = rescale

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Find the channels and their peaks, and return the factor [B, C, *S]."""
        block, over_space = clipped_block("TargetDrop", self.block_size, code), tuple(range(2, code.ndim))
        salient = scored(saliency(), code, self.score)
        channels = averaged(salient, over_space).flatten(1)
        self._warn_if_uninformative(channels)
        ranks = channels.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        chosen = ranks < rank_at(code.shape[1], self.fraction, code.device, generator).clamp_min(1)
        chosen = chosen & is_informative(channels)
        peaks = salient.flatten(2).argmax(2, keepdim=True)
        centres = torch.zeros(salient.flatten(2).shape, device=code.device).scatter(2, peaks, chosen[..., None].float())
        kept = 1 - grown(centres.view(salient.shape), block)
        if not self.rescale:
            return kept
        return kept * (math.prod(code.shape[2:]) / kept.sum(over_space, keepdim=True).clamp_min(1))
