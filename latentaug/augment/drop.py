"""Drop parts of a code: blocks of spatial positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.masks import Masker
from latentaug.augment.ranges import Range, as_range, draw

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
        if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
            raise ValueError(f"block_size must be a whole number of positions, 1 or more; got {block_size!r}.")
        self.block_size = block_size
        self.shared = shared
        self.rescale = rescale

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Sample the factor [B, 1 or C, *S]."""
        size = code.shape[2:]
        if len(size) not in _MAX_POOL:
            raise ValueError(
                f"DropBlock needs a code of one to three spatial axes; got shape {tuple(code.shape)}. Pass its layout."
            )
        block = [_odd(min(self.block_size, n)) for n in size]
        p = draw(self.p, (), code.device, generator)
        centres = [n - b + 1 for n, b in zip(size, block, strict=True)]
        gamma = p * math.prod(size) / (math.prod(block) * math.prod(centres))
        shape = (len(code), 1 if self.shared else code.shape[1], *centres)
        kept = 1 - _grown((draw((0.0, 1.0), shape, code.device, generator) < gamma).float(), block)
        if not self.rescale:
            return kept
        left = kept.flatten(1).sum(1).clamp_min(1).view(-1, *[1] * (code.ndim - 1))
        return kept * (math.prod(kept.shape[1:]) / left)


def _odd(number: int) -> int:
    return number - 1 + number % 2


def _grown(centres: Tensor, block: Sequence[int]) -> Tensor:
    """Return blocks [B, C, *S] around centres [B, C, *(S - b + 1)]."""
    around = [b // 2 for b in block]
    padding = [one for b in reversed(around) for one in (b, b)]
    return _MAX_POOL[len(block)](F.pad(centres, padding), tuple(block), stride=1, padding=tuple(around))
