"""Drop parts of a code: blocks and boxes of spatial positions, and channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.boxes import inside, sampled_boxes
from latentaug.augment.masks import Masker, RandomChannelMask
from latentaug.augment.ranges import Range, as_range, draw
from latentaug.augment.style import at_least_float32, moments
from latentaug.checks import whole

Fill = Literal["zero", "mean", "noise"]
"""What takes the place of what is cut out; see `Cutout`."""

_MAX_POOL: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class DropBlock(Masker):
    """Drop square blocks of spatial positions, and scale the rest up.

    Centres of blocks are sampled with a probability γ of p · ∏S / (bⁿ · ∏(S - b + 1)), where blocks fit. As blocks
    overlap, slightly less than a fraction p is dropped. What is left of a sample is multiplied by the number of its
    positions over that of those left, so that no sample depends on the others of its batch.

    Args:
        p: Fraction of positions to drop, in [0, 1]; a pair is sampled from uniformly. Default 0.1.
        block_size: Side b of a block, in positions; along an axis that is shorter, and where it is even, the largest
            odd number below is taken. Default 7.
        shared: Whether all channels of a sample lose the same blocks. Default True; the paper tried both.
        rescale: Whether what is left is scaled up.

    Shape:
        code: [B, C, *S] of one to three spatial axes (any layout given by `layout`; tokens have one).
        factor: [B, 1, *S], or [B, C, *S] where not `shared`.

    Samples:
        p once per batch, then the centres of each sample; from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range, or a code has more than three spatial axes.
        TypeError: An argument is of another kind.

    References:
        Ghiasi et al., NeurIPS 2018, arXiv:1810.12890.

    Example:
        >>> mask = DropBlock(0.2, block_size=3)(torch.ones(2, 8, 12, 12), generator=torch.Generator().manual_seed(0))
        >>> mask.factor.shape, bool((mask.factor == 0).any())
        (torch.Size([2, 1, 12, 12]), True)
    """

    acts_in_eval = False
    place = "deep"

    def __init__(self, p: Range = 0.1, block_size: int = 7, *, shared: bool = True, rescale: bool = True) -> None:
        super().__init__()
        self.p = as_range("p", p)
        self.block_size = whole("block_size", block_size, of="positions")
        self.shared = shared
        self.rescale = rescale

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Sample the factor [B, 1 or C, *S]."""
        size, block = code.shape[2:], clipped_block("DropBlock", self.block_size, code)
        p = draw(self.p, (), code.device, generator)
        centres = [n - b + 1 for n, b in zip(size, block, strict=True)]
        gamma = p * math.prod(size) / (math.prod(block) * math.prod(centres))
        shape = (len(code), 1 if self.shared else code.shape[1], *centres)
        chosen = (draw((0.0, 1.0), shape, code.device, generator) < gamma).float()
        around = [b // 2 for b in reversed(block) for _ in range(2)]
        kept = 1 - grown(F.pad(chosen, around), block)
        if not self.rescale:
            return kept
        left = kept.flatten(1).sum(1).clamp_min(1).view(-1, *[1] * (code.ndim - 1))
        return kept * (math.prod(kept.shape[1:]) / left)


class ChannelDropout(RandomChannelMask):
    """Drop random channels of each sample, and scale the others up; in train mode only.

    The same as `RandomChannelMask`, which acts in eval mode too: each channel is dropped with probability `p`, and what
    is kept is multiplied by 1 / (1 - p).

    Args:
        p: Chance of each channel to be dropped, in [0, 1]; a pair is sampled from uniformly. Default 0.5.
        rescale: Whether what is kept is scaled up.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   factor: [B, C, 1, …].

    Samples:
        p once per batch, then each channel of each sample; from `generator`, on its device.

    Raises:
        ValueError: `p` is outside [0, 1].

    References:
        Tompson et al., CVPR 2015, arXiv:1411.4280.

    Example:
        >>> mask = ChannelDropout(0.25)(torch.ones(2, 8, 4, 4), generator=torch.Generator().manual_seed(0))
        >>> mask.factor.shape, mask.factor.unique()
        (torch.Size([2, 8, 1, 1]), tensor([0.0000, 1.3333]))
    """

    acts_in_eval = False


class Cutout(LatentTransform):
    """Cut a box out of each sample, from all of its channels, and fill it.

    Nothing else is changed, nor scaled up. What is filled in is a constant in the backward pass.

    Args:
        side: Side of the box as a fraction of each axis, in [0, 1]; a pair is sampled from uniformly for each sample.
            Rounded up to whole positions. Default (0.25, 0.5).
        fill: "zero"; "mean", which is that of each channel of the sample; or "noise", from a normal distribution of
            each channel's own mean and deviation.
        p: Chance that it acts, in [0, 1]. Default 1.
        per_sample: Whether to sample for each sample whether it acts, and not once for the batch.

    Shape:
        code: [B, C, *S] (any layout given by `layout`; tokens have one axis).   output: the same.

    Samples:
        Whether to act, the side and the place for each sample, the noise for each entry; all from `generator`, on its
        device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    References:
        DeVries and Taylor, 2017, arXiv:1708.04552, on images.

    Example:
        >>> code = torch.ones(2, 8, 12, 12)
        >>> change = Cutout(0.5)(code, generator=torch.Generator().manual_seed(0))
        >>> (change.apply(code) == 0).sum((2, 3)).unique()
        tensor([36])
    """

    def __init__(
        self, side: Range = (0.25, 0.5), fill: Fill = "zero", *, p: Range = 1.0, per_sample: bool = False
    ) -> None:
        super().__init__(p=p, per_sample=per_sample)
        if fill not in get_args(Fill):
            raise ValueError(f"fill must be one of {', '.join(map(repr, get_args(Fill)))}; got {fill!r}.")
        self.side = as_range("side", side)
        self.fill = fill

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the boxes, and the noise where that fills them."""
        params = {"box": sampled_boxes(code.shape[2:], context.uniform(self.side, len(code)), context)}
        return params | {"noise": context.randn(*code.shape)} if self.fill == "noise" else params

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Fill the boxes."""
        values = at_least_float32(code)
        filling: Tensor | float = 0.0
        if self.fill != "zero":
            filling, deviation = moments(values, 0.0, detach=True)
            if self.fill == "noise":
                filling = filling + deviation * params["noise"].to(values.dtype)
        return torch.where(inside(params["box"], code.shape[2:]), filling, values)


def clipped_block(name: str, block_size: int, code: Tensor) -> list[int]:
    """Return a block's side along each spatial axis: the largest odd number that fits.

    Raises:
        ValueError: The code has more than three spatial axes.
    """
    size = code.shape[2:]
    if len(size) not in _MAX_POOL:
        raise ValueError(
            f"{name} needs a code of one to three spatial axes; got shape {tuple(code.shape)}. Pass its layout."
        )
    sides = [min(block_size, n) for n in size]
    return [side - 1 + side % 2 for side in sides]


def grown(centres: Tensor, block: Sequence[int]) -> Tensor:
    """Return blocks around centres, cut off where they reach beyond the code.

    Shape:
        centres, output: [B, C, *S], 0 or 1.
    """
    return _MAX_POOL[len(block)](centres, tuple(block), stride=1, padding=tuple(b // 2 for b in block))
