"""Maskers made of maskers, and the paper's own choice of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from latentaug.augment.masks import (
    LatentMask,
    Masker,
    RandomChannelMask,
    Score,
    TargetedChannelMask,
    TargetedSpatialMask,
)
from latentaug.augment.ranges import as_share, draw


class Compose(Masker):
    """Apply several maskers at once: the product of their factors.

    Every masker sees the same unmasked code and the same saliency, which is computed once at most.

    Args:
        maskers: The maskers to multiply, drawn from in this order.

    Draws:
        What each masker draws, once per batch.

    Raises:
        TypeError: Something else than a masker is among them.
        ValueError: There is none.

    Example:
        >>> import torch
        >>> masker = Compose([TargetedChannelMask(0.5, 0), TargetedSpatialMask(0.5, 0)])
        >>> mask = masker(torch.ones(1, 8, 4, 4), torch.randn(1, 8, 4, 4))
        >>> mask.factor.shape, int(mask.factor.sum())
        (torch.Size([1, 8, 4, 4]), 32)
    """

    def __init__(self, maskers: Iterable[Masker]) -> None:
        super().__init__()
        self.maskers = _children(self, maskers)

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Multiply the children's factors."""
        return reduce(torch.mul, [_factor(masker, code, saliency, generator) for masker in self.maskers])


class OneOf(Masker):
    """Let one of several maskers, chosen at random, mask the whole batch.

    Args:
        maskers: A list of maskers, each as likely as the others; or a dict from masker to weight, of any sum.

    Draws:
        The masker once per batch, then what it draws itself. The choice becomes a Python number: with a generator on a
        GPU that makes the host wait for it, with none or one on the CPU it does not.

    Raises:
        TypeError: Something else than a masker is among them.
        ValueError: There is none, or the weights are negative, not finite or all zero.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (random choice of the masking scheme).

    Example:
        >>> import torch
        >>> masker = OneOf({RandomChannelMask(): 0.7, RandomChannelMask(rescale=False): 0.3})
        >>> masker(torch.ones(2, 8, 4, 4)).factor.shape
        torch.Size([2, 8, 1, 1])
    """

    def __init__(self, maskers: Iterable[Masker] | Mapping[Masker, float]) -> None:
        super().__init__()
        self.maskers = _children(self, maskers)
        self.weights = tuple(maskers.values()) if isinstance(maskers, Mapping) else (1.0,) * len(self.maskers)
        if not all(0 <= weight < math.inf for weight in self.weights) or not sum(self.weights):
            raise ValueError(f"OneOf needs weights >= 0, finite and not all zero; got {self.weights}.")

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Choose a child and return its factor."""
        source = torch.device("cpu") if generator is None else generator.device
        weights = torch.tensor(self.weights, dtype=torch.float64, device=source)
        chosen = self.maskers[int(torch.multinomial(weights, 1, generator=generator))]
        return _factor(chosen, code, saliency, generator)

    def extra_repr(self) -> str:
        """Show the weights where they differ."""
        return "" if len(set(self.weights)) == 1 else f"weights={self.weights}"


class RandomApply(Masker):
    """Mask the whole batch with probability `p`, or leave it alone.

    Args:
        masker: The masker to apply, or not.
        p: Probability of applying it, in [0, 1].

    Draws:
        Whether to mask once per batch, then what the masker draws. The choice becomes a Python number: with a generator
        on a GPU that makes the host wait for it, with none or one on the CPU it does not.

    Raises:
        TypeError: `masker` is no masker, or `p` no number.
        ValueError: `p` is outside [0, 1].

    Example:
        >>> import torch
        >>> RandomApply(RandomChannelMask(), p=0)(torch.ones(2, 8, 4, 4)).factor.unique()
        tensor([1.])
    """

    def __init__(self, masker: Masker, p: float = 0.5) -> None:
        super().__init__()
        self.masker = _masker(self, masker)
        self.p = as_share("p", p)

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Return the child's factor, or ones."""
        if draw((0.0, 1.0), (), torch.device("cpu"), generator) < self.p:
            return _factor(self.masker, code, saliency, generator)
        return torch.ones([1] * code.ndim, dtype=torch.float32, device=code.device)


def paper_masks(score: Score = "signed") -> OneOf:
    """Return the paper's scheme: dropout, channel or spatial masking, each as likely, with the paper's settings.

    Args:
        score: What the two targeted masks rank by; the paper's is "signed". "harm" makes harder examples, see
            `TargetedChannelMask`.

    Example:
        >>> paper_masks()
        OneOf(
          (maskers): ModuleList(
            (0): RandomChannelMask()
            (1): TargetedChannelMask()
            (2): TargetedSpatialMask()
          )
        )
    """
    return OneOf([RandomChannelMask(), TargetedChannelMask(score=score), TargetedSpatialMask(score=score)])


def _factor(
    masker: nn.Module, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None
) -> Tensor:
    mask: LatentMask = masker(code, saliency, generator=generator)
    return mask.factor


def _children(owner: Masker, maskers: Iterable[Masker]) -> nn.ModuleList:
    children = nn.ModuleList(_masker(owner, masker) for masker in maskers)
    if not children:
        raise ValueError(f"{type(owner).__name__} needs at least one masker; got none.")
    return children


def _masker(owner: Masker, candidate: object) -> Masker:
    if not isinstance(candidate, Masker):
        raise TypeError(f"{type(owner).__name__} needs maskers; got {candidate!r}. Pass an instance of a Masker.")
    return candidate
