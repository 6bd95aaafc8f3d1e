"""Transforms made of transforms, and the paper's own choice of masks."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.augment.base import Change, Context, Criterion, LatentTransform
from latentaug.augment.change import for_nobody
from latentaug.augment.masks import (
    LatentMask,
    RandomChannelMask,
    Score,
    TargetedChannelMask,
    TargetedSpatialMask,
)
from latentaug.augment.ranges import Range, as_range, draw, source_of
from latentaug.checks import number, shown
from latentaug.layout import Layout


class _Composed(LatentTransform):
    """Transforms made of others: their change is made of the changes of those that were chosen."""

    acts_in_eval = True  # which of the children do is theirs to say
    gated = False

    def __init__(self, transforms: Iterable[LatentTransform]) -> None:
        super().__init__()
        if isinstance(transforms, nn.Module) or not isinstance(transforms, Iterable):
            raise TypeError(
                f"{type(self).__name__} needs a list of transforms, such as maskers; got {shown(transforms)}. Put them "
                "into a list."
            )
        children = [_transform(self, one) for one in transforms]
        if not children:
            raise ValueError(f"{type(self).__name__} needs at least one transform; got none.")
        self.transforms = nn.ModuleList(children)
        self.needs = tuple(dict.fromkeys(need for child in children for need in child.needs))
        self.whole_pass = any(child.whole_pass for child in children)
        self.is_mask = all(child.is_mask for child in children)
        self.place = " and ".join(dict.fromkeys(child.place for child in children))

    @property
    def any_layout(self) -> bool:
        """Whether it makes no difference to any of them which axis holds the channels."""
        return all(child.any_layout for child in self.transforms)

    def changed(self, code: Tensor, layout: Layout, params: dict[str, Any], gate: Tensor | None) -> Change:
        """Wrap the changes: those of masks are one mask, their product; a single one is itself."""
        changes: list[Change] = params["changes"]
        if self.is_mask or (len(changes) == 1 and isinstance(changes[0], LatentMask)):
            ones = torch.ones([1] * layout.to_channels_first(code).ndim, device=code.device)
            masks = [change for change in changes if isinstance(change, LatentMask)]
            factors = [mask.factor for mask in masks] or [ones]
            factor = layout.from_channels_first(functools.reduce(torch.mul, factors), code)
            made = LatentMask(factor, transform=self, params=params, layout=layout)
            made.gate = for_nobody() if all(mask.is_identity for mask in masks) else None
            return made
        if all(change.is_identity for change in changes):
            return self.unchanged(code, layout)
        if len(changes) == 1:
            return Change(changes[0].transform, changes[0].params, layout=layout, gate=changes[0].gate)
        return super().changed(code, layout, params, gate)

    def restored(self, state: Mapping[str, Any]) -> Change:
        """Make a change of its own from a state, a mask where it was one."""
        return LatentMask.from_state(self, state) if "factor" in state else super().restored(state)


class Compose(_Composed):
    """Apply several transforms, one after the other.

    Every transform sees what the last one made of the code; a mask, which only multiplies, sees the code as it is where
    all of them are masks, and the result is a mask: the product of their factors. The saliency is computed once at
    most, of the code as it was given.

    Args:
        transforms: The transforms to apply, sampled in this order.

    Samples:
        What each transform samples.

    Raises:
        TypeError: Something else than a transform is among them, or one that changes a whole pass, as mixing does.
        ValueError: There is none.

    Example:
        >>> import torch
        >>> masker = Compose([TargetedChannelMask(0.5, 0), TargetedSpatialMask(0.5, 0)])
        >>> mask = masker(torch.ones(1, 8, 4, 4), torch.randn(1, 8, 4, 4))
        >>> mask.factor.shape, int(mask.factor.sum())
        (torch.Size([1, 8, 4, 4]), 32)
    """

    def __init__(self, transforms: Iterable[LatentTransform]) -> None:
        super().__init__(transforms)
        if self.whole_pass and len(self.transforms) > 1:
            raise TypeError(
                "Compose needs transforms of one code; got one that changes a whole pass, which the others cannot "
                "follow. Tap two layers, or replay twice."
            )

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample a change by each child."""
        changes: list[Change] = []
        for child in self.transforms:
            changes.append(child(code, context, generator=context.generator))
            if not self.is_mask:
                code = changes[-1].made(code)
        return {"changes": changes}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Make the changes, one after the other."""
        changes: list[Change] = params["changes"]
        return functools.reduce(lambda changed, change: change.made(changed), changes, code)

    def loss(self, criterion: Criterion, logits: Tensor, labels: Tensor, **params: Any) -> Tensor:
        """Mix labels as the changes do, one after the other."""
        changes: list[Change] = params["changes"]
        for change in reversed(changes):
            criterion = functools.partial(change.loss, criterion)
        return criterion(logits, labels)


class OneOf(_Composed):
    """Let one of several transforms, chosen at random, change the whole batch.

    Args:
        transforms: A list of transforms, each as likely as the others; or a dict from transform to weight, of any sum.

    Samples:
        The transform once per batch, then what it samples itself. The choice becomes a Python number: with a generator
        on a GPU that makes the host wait for it, with none or one on the CPU it does not.

    Raises:
        TypeError: Something else than a transform is among them, or a weight is no number.
        ValueError: There is none, or the weights are negative, not finite or all zero.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079 (random choice of the masking scheme).

    Example:
        >>> import torch
        >>> masker = OneOf({RandomChannelMask(): 0.7, RandomChannelMask(rescale=False): 0.3})
        >>> masker(torch.ones(2, 8, 4, 4)).factor.shape
        torch.Size([2, 8, 1, 1])
    """

    def __init__(self, transforms: Iterable[LatentTransform] | Mapping[LatentTransform, float]) -> None:
        super().__init__(transforms)
        self.weights = tuple(transforms.values()) if isinstance(transforms, Mapping) else (1.0,) * len(self.transforms)
        if not sum(number("weights", weight, least=0) for weight in self.weights):
            raise ValueError(f"weights must not all be zero; got {self.weights}.")

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Choose a child and sample its change."""
        chosen = self.transforms[context.choice(self.weights)]
        return {"changes": [chosen(code, context, generator=context.generator)]}

    def extra_repr(self) -> str:
        """Show the weights where they differ."""
        return "" if len(set(self.weights)) == 1 else f"weights={self.weights}"


class RandomApply(_Composed):
    """Change the whole batch with probability `p`, or leave it alone.

    Args:
        transform: The transform to apply, or not.
        p: Probability of applying it, in [0, 1]; a pair is sampled from uniformly.

    Samples:
        Whether to act once per batch, then what the transform samples. The choice becomes a Python number: with a
        generator on a GPU that makes the host wait for it, with none or one on the CPU it does not.

    Raises:
        TypeError: `transform` is no transform, or `p` no number.
        ValueError: `p` is outside [0, 1].

    Example:
        >>> import torch
        >>> RandomApply(RandomChannelMask(), p=0)(torch.ones(2, 8, 4, 4)).factor.unique()
        tensor([1.])
    """

    def __init__(self, transform: LatentTransform, p: Range = 0.5) -> None:
        super().__init__([transform])
        self.p = as_range("p", p)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the child's change, or none."""
        source = source_of(context.generator)
        p = draw(self.p, (), source, context.generator)
        acts = draw((0.0, 1.0), (), source, context.generator) < p
        return {"changes": [child(code, context, generator=context.generator) for child in self.transforms if acts]}


def paper_masks(score: Score = "signed") -> OneOf:
    """Return the paper's scheme: dropout, channel or spatial masking, each as likely, with the paper's settings.

    Args:
        score: What the two targeted masks rank by; the paper's is "signed". "harm" makes harder examples, see
            `TargetedChannelMask`.

    Raises:
        ValueError: There is no such score.

    Example:
        >>> paper_masks()
        OneOf(
          (transforms): ModuleList(
            (0): RandomChannelMask()
            (1): TargetedChannelMask()
            (2): TargetedSpatialMask()
          )
        )
    """
    return OneOf([RandomChannelMask(), TargetedChannelMask(score=score), TargetedSpatialMask(score=score)])


def _transform(owner: LatentTransform, candidate: object) -> LatentTransform:
    if not isinstance(candidate, LatentTransform):
        raise TypeError(f"{type(owner).__name__} needs transforms; got {shown(candidate)}. Pass an instance of one.")
    return candidate
