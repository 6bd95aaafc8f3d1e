"""Maskers: from a latent code, and its saliency where they need one, to the mask that makes a hard example."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from latentaug.augment.base import Change, Context, LatentTransform
from latentaug.augment.change import for_nobody, unpacked
from latentaug.augment.ranges import Range, as_range, draw, value_of
from latentaug.checks import tensor
from latentaug.layout import CHANNELS_FIRST, Layout

Score: TypeAlias = Literal["signed", "magnitude", "harm"]
"""What targeted maskers rank channels or spatial positions by; see `TargetedChannelMask`."""
_SCORES = get_args(Score)


class LatentMask(Change):
    """The change that multiplies a latent code by a factor.

    Example:
        >>> import torch
        >>> mask = LatentMask(torch.tensor([1.0, 0.0]).view(1, 2, 1))
        >>> mask.apply(torch.full((1, 2, 3), 5.0))
        tensor([[[5., 5., 5.],
                 [0., 0., 0.]]])
    """

    factor: Tensor
    """Broadcastable to the code: 1 kept, 0 dropped, between annealed, above 1 rescaled."""

    def __init__(
        self,
        factor: Tensor,
        *,
        transform: LatentTransform | None = None,
        params: Mapping[str, Any] | None = None,
        layout: Layout = CHANNELS_FIRST,
    ) -> None:
        super().__init__(Masker() if transform is None else transform, params or {"factor": factor}, layout=layout)
        self.factor = factor

    @property
    def is_identity(self) -> bool:
        """Whether it is known, without asking a device, that everything is kept."""
        return self.gate is not None  # for nobody: a mask that acts has none

    def made(self, code: Tensor) -> Tensor:
        """Multiply the code by the factor, cast to the code's dtype and device; one that keeps everything returns it.

        Raises:
            ValueError: The code is not of the shape that the factor was sampled for.
        """
        tensor("code", code, who=type(self.transform).__name__)
        if code.ndim != self.factor.ndim or any(
            m not in (1, n) for n, m in zip(code.shape, self.factor.shape, strict=True)
        ):
            raise ValueError(
                f"This mask is for a code of shape {tuple(self.factor.shape)}, where 1 stands for any number; got a "
                f"code of shape {tuple(code.shape)}. Sample one for that code."
            )
        return code if self.is_identity else code * self.factor.to(code.device, code.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return all that was sampled, and the factor."""
        return {**super().state_dict(), "factor": self.factor}

    def to(self, device: torch.device | str) -> LatentMask:
        """Return the same mask on another device."""
        moved = super().to(device)
        assert isinstance(moved, LatentMask)
        moved.factor = self.factor.to(device)
        return moved

    def on(self, layout: Layout) -> LatentMask:
        """Return the same mask for codes of another layout.

        Raises:
            ValueError: The layouts differ in more than where the channels are.
        """
        moved = super().on(layout)
        assert isinstance(moved, LatentMask)
        if layout != self.layout:
            if layout.prefix_tokens != self.layout.prefix_tokens:
                raise ValueError(f"A mask for {self.layout} does not fit {layout}. Sample one for each.")
            moved.factor = self.factor.movedim(self.layout.channel_dim, layout.channel_dim)
        return moved

    @classmethod
    def from_state(cls, transform: LatentTransform, state: Mapping[str, Any]) -> LatentMask:
        """Make the mask again that a transform has sampled."""
        params = unpacked(state["params"], transform)
        mask = cls(state["factor"], transform=transform, params=params, layout=Layout(*state["layout"]))
        mask.gate = state["gate"]
        return mask


class Masker(LatentTransform):
    """Turn a latent code into a `LatentMask`; the base of all maskers.

    A mask acts in train and eval mode alike, unless its class says `acts_in_eval = False`, as those that stand for a
    layer do, such as `DropBlock`. Subclasses write `sample` only, which always sees channels first; calls take any
    layout. What some call `p` is a fraction of the code: a mask is not gated.

    Example:
        >>> import torch
        >>> class FirstChannelMask(Masker):
        ...     def sample(self, code, saliency, generator):
        ...         factor = torch.ones(code.shape[1])
        ...         factor[0] = 0
        ...         return factor.view(1, -1, *[1] * (code.ndim - 2))
        >>> FirstChannelMask()(torch.ones(2, 3, 4, 4)).factor.flatten()
        tensor([0., 1., 1.])
    """

    acts_in_eval = True
    gated = False  # what maskers call p is a fraction of the code
    is_mask = True

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Return the factor for a code [B, C, *S], with as many axes; `saliency()` gives the saliency in its shape."""
        raise NotImplementedError(f"{type(self).__name__} needs a method sample(code, saliency, generator) -> Tensor.")

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the factor."""
        return {"factor": self.sample(code, context.saliency, context.generator)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Multiply by the factor."""
        factor: Tensor = params["factor"]
        return code * factor.to(code.dtype)

    def changed(self, code: Tensor, layout: Layout, params: dict[str, Any], gate: Tensor | None) -> LatentMask:
        """Wrap a factor."""
        factor = layout.from_channels_first(params["factor"], code)
        return LatentMask(factor, transform=self, params=params, layout=layout)

    def restored(self, state: Mapping[str, Any]) -> LatentMask:
        """Make a mask of its own from a state."""
        return LatentMask.from_state(self, state)

    def unchanged(self, code: Tensor, layout: Layout) -> LatentMask:
        """Return the mask that keeps everything."""
        ones = torch.ones([1] * layout.to_channels_first(code).ndim, device=code.device)
        mask = self.changed(code, layout, {"factor": ones}, None)
        mask.gate = for_nobody()
        return mask

    def _warn_if_uninformative(self, score: Tensor) -> None:
        # Asking on a GPU would make the host wait for it at every step, so the question is put on the CPU only;
        # the mask itself is right everywhere, by tensor operations in `top_mask`.
        if self._has_warned or not score.is_cpu or torch.compiler.is_compiling() or is_informative(score).all():
            return
        self._has_warned = True
        warnings.warn(
            f"{type(self).__name__} leaves samples unmasked whose saliency is all zero or not finite. Check that the "
            "loss depends on the code and is finite; in float16, get the saliency from latent_saliency, which scales "
            "the loss. Said once per masker.",
            stacklevel=2,
        )


class RandomChannelMask(Masker):
    """Drop random channels of a latent code.

    Drops each channel with probability `p` and, as dropout does, multiplies the kept ones by 1 / (1 - p).

    Args:
        p: Probability of dropping a channel, in [0, 1]; a pair is sampled from uniformly. Default 0.5, as in the
            authors' released code; a pair such as (0, 0.5) samples the rate, as the paper's text does.
        rescale: Whether kept channels are multiplied by 1 / (1 - p), or left alone.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   factor: [B, C, 1, …].

    Samples:
        p once per batch, then each channel of each sample, both from `generator`, on its device.

    Raises:
        ValueError: `p` is outside [0, 1].

    References:
        Tompson et al., CVPR 2015, arXiv:1411.4280, for dropping whole channels;
        Chen et al., MICCAI 2021, arXiv:2107.01079, for doing so to a latent code.

    Example:
        >>> import torch
        >>> code = torch.ones(2, 128, 12, 12)
        >>> mask = RandomChannelMask()(code, generator=torch.Generator().manual_seed(0))
        >>> mask.factor.shape, mask.factor.unique()
        (torch.Size([2, 128, 1, 1]), tensor([0., 2.]))
    """

    def __init__(self, p: Range = 0.5, *, rescale: bool = True) -> None:
        super().__init__()
        self.p = as_range("p", p)
        self.rescale = rescale

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Draw the factor [B, C, 1, …]; the saliency is not asked for."""
        p = draw(self.p, (), code.device, generator)
        kept = draw((0.0, 1.0), code.shape[:2], code.device, generator) >= p
        scale = 1 / (1 - p) if self.rescale else torch.ones_like(p)
        factor = torch.where(kept, scale, 0.0)  # not kept * scale: with p = 1 that is 0 * inf
        return factor.view(*factor.shape, *[1] * (code.ndim - 2))


class _TargetedMask(Masker):
    """Average the saliency over some axes and damp what has the highest score; subclasses name the axes."""

    needs = ("saliency",)
    averaged_axes: slice  # of a code [B, C, *S]

    def __init__(
        self,
        percentile: Range = (0, 0.5),
        annealing: Range = (0, 0.5),
        *,
        score: Score = "signed",
    ) -> None:
        super().__init__()
        if score not in _SCORES:
            raise ValueError(f"score must be one of {', '.join(map(repr, _SCORES))}; got {score!r}.")
        self.percentile = as_range("percentile", percentile)
        self.annealing = as_range("annealing", annealing)
        self.score = score

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Score the saliency and draw the factor, 1 wide along the averaged axes."""
        axes = tuple(range(code.ndim)[self.averaged_axes])
        score = averaged(scored(saliency(), code, self.score), axes)
        self._warn_if_uninformative(score.flatten(1))
        return top_mask(score.flatten(1), self.percentile, self.annealing, generator=generator).view(score.shape)


class TargetedChannelMask(_TargetedMask):
    """Damp the most salient channels of a latent code.

    Scores each channel by the mean over space of the signed saliency, or of another `score`, takes the value at rank
    int(C · p) as threshold and multiplies what lies strictly above it by `annealing`: exactly int(C · p) channels if no
    scores tie. A sample whose saliency is all zero or not finite keeps every channel, and the
    masker warns once (on the CPU).

    Args:
        percentile: Fraction of channels to mask, in [0, 1]; a pair is sampled from uniformly. Default (0, 0.5), as in
            the paper.
        annealing: Factor for a masked channel, in [0, 1]; 0 is the hard mask. Default (0, 0.5), the paper's soft mask.
        score: "signed" averages the saliency with its sign, as the paper does; "magnitude" its absolute value; "harm"
            what damping would add to the loss, to first order: saliency times code, with the opposite sign. Where codes
            are never negative, as after a ReLU, damping where "signed" is high tends to *lower* the loss: on networks
            with skip connections, what the masked code decodes to can be better than the original.

    Shape:
        code, saliency: [B, C, *S] (any layout given by `layout`).   factor: [B, C, 1, …].

    Samples:
        p once per batch, annealing once per masked channel, both from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range; or `saliency` is missing, or its shape differs from the code's.
        TypeError: An argument is of another kind.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (targeted masking, channel-wise).

    Example:
        >>> import torch
        >>> code, saliency = torch.ones(2, 128, 12, 12), torch.randn(2, 128, 12, 12)
        >>> mask = TargetedChannelMask(0.25, annealing=0)(code, saliency)
        >>> mask.factor.shape, (mask.factor == 0).sum(1).flatten()
        (torch.Size([2, 128, 1, 1]), tensor([32, 32]))
    """

    averaged_axes = slice(2, None)


class TargetedSpatialMask(_TargetedMask):
    """Damp the most salient spatial positions of a latent code.

    Scores each position by the mean over channels of the signed saliency, or of another `score`, takes the value at
    rank int(n · p) of the n positions as threshold and multiplies what lies strictly above it by `annealing`: exactly
    int(n · p) positions if no scores tie. A sample whose saliency is all zero or not finite keeps every position, and
    the masker warns once (on the CPU).

    Args:
        percentile: Fraction of positions to mask, in [0, 1]; a pair is sampled from uniformly. Default (0, 0.5), as in
            the paper.
        annealing: Factor for a masked position, in [0, 1]; 0 is the hard mask. Default (0, 0.5), the paper's soft mask.
        score: What to average: "signed", "magnitude" or "harm", as for `TargetedChannelMask`.

    Shape:
        code, saliency: [B, C, *S] (any layout given by `layout`).   factor: [B, 1, *S].

    Samples:
        p once per batch, annealing once per masked position, both from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range; or `saliency` is missing, or its shape differs from the code's.
        TypeError: An argument is of another kind.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (targeted masking, spatial-wise).

    Example:
        >>> import torch
        >>> code, saliency = torch.ones(2, 128, 12, 12), torch.randn(2, 128, 12, 12)
        >>> mask = TargetedSpatialMask(0.25, annealing=0)(code, saliency)
        >>> mask.factor.shape, (mask.factor == 0).sum((1, 2, 3))
        (torch.Size([2, 1, 12, 12]), tensor([36, 36]))
    """

    averaged_axes = slice(1, 2)


def top_mask(
    score: Tensor, percentile: Range | Tensor, annealing: Range, *, generator: torch.Generator | None = None
) -> Tensor:
    """Damp the entries with the highest scores.

    Sorts each row's scores in descending order, takes the value at rank k = int(n · percentile) as threshold and
    multiplies what lies strictly above it by `annealing`. Ties at the threshold stay; k = n masks the whole row. A row
    that is all zero or not all finite says nothing about what is salient and is never masked.

    Args:
        score: One score per entry.
        percentile: Fraction of entries to mask, in [0, 1]; a pair is sampled from uniformly; a 0-dim tensor is one that
            was sampled already. k is computed in Python for a number, in float32 for a sampled fraction.
        annealing: Factor for a masked entry, in [0, 1]; a pair is sampled from uniformly.
        generator: Source of the random numbers. Default: PyTorch's global CPU generator.

    Shape:
        score: [B, n].   Returns: [B, n], float32.

    Samples:
        percentile once per batch, annealing once per masked entry, both from `generator`, on its device.

    Raises:
        ValueError: The score has another number of axes; percentile or annealing are outside [0, 1].
        TypeError: The score is not floating-point.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (targeted masking).

    Example:
        >>> import torch
        >>> top_mask(torch.tensor([[0.3, 0.9, -2.0, 0.5]]), percentile=0.5, annealing=0)
        tensor([[1., 0., 1., 0.]])
    """
    if score.ndim != 2:
        raise ValueError(f"top_mask needs `score` of shape [B, n]; got {tuple(score.shape)}. Flatten it to two axes.")
    if not score.is_floating_point():
        raise TypeError(f"top_mask needs a floating-point `score`; got {score.dtype}. Pass score.float().")
    score = score.masked_fill(~is_informative(score), -math.inf)
    ranked = F.pad(score.sort(dim=1, descending=True).values, (0, 1), value=-math.inf)
    threshold = ranked.index_select(1, rank_at(score.shape[1], percentile, score.device, generator))
    damped = draw(as_range("annealing", annealing), score.shape, score.device, generator)
    return torch.where(score > threshold, damped, 1.0)


def scored(saliency: Tensor, code: Tensor, score: Score) -> Tensor:
    """Return what each entry of a code counts for: its saliency, the magnitude of that, or the harm of damping it."""
    if score == "magnitude":
        return saliency.abs()
    if score == "harm":
        return -saliency.to(torch.promote_types(saliency.dtype, torch.float32)) * code.detach()
    return saliency


def averaged(score: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return means over some axes, which stay, 1 wide.

    In float32, as a mean of half-precision gradients near 1e-5 would tie or underflow; float64 stays what it is.
    """
    return score.mean(axes, keepdim=True, dtype=torch.promote_types(score.dtype, torch.float32))


def rank_at(n: int, percentile: Range | Tensor, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Return how many of n entries to mask as an index on the device: reading it back would stall a GPU."""
    if isinstance(percentile, Tensor):
        if percentile.ndim or (percentile.is_cpu and not 0 <= percentile <= 1):
            raise ValueError(f"percentile must be one number in [0, 1], as a 0-dim tensor; got {percentile}.")
    else:
        percentile = value_of(as_range("percentile", percentile))
        if not isinstance(percentile, tuple):
            return torch.full((1,), int(n * percentile), device=device)
        percentile = draw(percentile, (), device, generator)
    return (n * percentile.to(device, torch.float32)).long().view(1)


def is_informative(score: Tensor) -> Tensor:
    """Say for each row [B, n] -> [B, 1] whether its scores are all finite and not all zero."""
    return score.isfinite().all(1, keepdim=True) & score.any(1, keepdim=True)
