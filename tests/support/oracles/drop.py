"""Loops for what drops parts of a code: with the random numbers, in the order in which the transforms sample them."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.drop import ChannelDropout, Cutout, DropBlock
from latentaug.augment.masks import RandomChannelMask, TargetedChannelMask, TargetedSpatialMask
from latentaug.augment.targeted_drop import RSC, TargetDrop
from tests.support.codes import Kind, code_of, samples_of, seeded
from tests.support.oracles.compare import Oracle, saliency_of


def clipped(block_size: int, size: tuple[int, ...]) -> list[int]:
    """The largest odd number that is neither above the block's size nor above the code's."""
    return [max(b for b in range(1, min(block_size, n) + 1) if b % 2) for n in size]


def gamma_of(p: float, block: list[int], size: tuple[int, ...]) -> float:
    """The chance of a centre: Ghiasi et al., equation 1, along each axis."""
    chance = p
    for b, n in zip(block, size, strict=True):
        chance *= n / b / (n - b + 1)
    return chance


def factor_by_loop(shape: tuple[int, ...], p: float, block_size: int, uniform: Tensor, rescale: bool) -> Tensor:
    """DropBlock's factor [B, 1 or C, *S] for uniform numbers at all centres where blocks fit."""
    batch, channels, *size = shape
    block = clipped(block_size, tuple(size))
    gamma = torch.tensor(gamma_of(p, block, tuple(size)), dtype=torch.float32)
    factor = torch.ones(batch, channels, *size)
    for sample, channel in itertools.product(range(batch), range(channels)):
        for corner in itertools.product(*(range(n - b + 1) for n, b in zip(size, block, strict=True))):
            if uniform[(sample, channel, *corner)] < gamma:
                box = tuple(slice(first, first + b) for first, b in zip(corner, block, strict=True))
                factor[(sample, channel, *box)] = 0
        if rescale and channel == channels - 1:
            kept = int(factor[sample].sum())
            factor[sample] *= factor[sample].numel() / max(kept, 1)
    return factor


def times(code: Tensor, kind: Kind, factor: Tensor) -> Tensor:
    """Multiply each channel of each sample by its part of a factor [B, 1 or C, *S or 1, …]."""
    samples, double = samples_of(code, kind.layout), factor.double()
    changed = [
        [values * double[i, c if factor.shape[1] > 1 else 0] for c, values in enumerate(channels)]
        for i, channels in enumerate(samples)
    ]
    return code_of(changed, code, kind.layout)


def drop_block(
    code: Tensor,
    kind: Kind,
    params: dict[str, Any],
    *,
    p: float = 0.1,
    block_size: int = 7,
    shared: bool = True,
    rescale: bool = True,
) -> Tensor:
    """Ghiasi et al.: centre by centre."""
    size = tuple(samples_of(code, kind.layout)[0][0].shape)
    centres = [n - b + 1 for n, b in zip(size, clipped(block_size, size), strict=True)]
    shape = (len(code), 1 if shared else 6)
    uniform = torch.rand(*shape, *centres, generator=seeded())
    return times(code, kind, factor_by_loop((*shape, *size), p, block_size, uniform, rescale))


def channel_dropout(
    code: Tensor, kind: Kind, params: dict[str, Any], *, p: float = 0.5, rescale: bool = True
) -> Tensor:
    """Tompson et al.: a number for each channel of each sample."""
    uniform, samples = torch.rand(4, 6, generator=seeded()), samples_of(code, kind.layout)
    scale = 1 / (1 - p) if rescale and p < 1 else 1.0
    changed = [
        [values * (0.0 if uniform[i, c] < p else scale) for c, values in enumerate(channels)]
        for i, channels in enumerate(samples)
    ]
    return code_of(changed, code, kind.layout)


def cutout(code: Tensor, kind: Kind, params: dict[str, Any], *, fill: str = "zero") -> Tensor:
    """DeVries and Taylor: a box in each sample."""
    changed = []
    for i, channels in enumerate(samples_of(code, kind.layout)):
        box = tuple(slice(first, behind) for first, behind in params["box"][i].T.tolist())
        changed.append([])
        for c, values in enumerate(channels):
            filled, constant = values.clone(), values.detach()
            filled[box] = {
                "zero": lambda constant, noise: 0.0 * constant,
                "mean": lambda constant, noise: constant.sum() / constant.numel() + 0.0 * constant,
                "noise": lambda constant, noise: constant.mean() + constant.std() * noise.double(),
            }[fill](constant, params["noise"][i, c] if fill == "noise" else None)[box]
            changed[-1].append(filled)
    return code_of(changed, code, kind.layout)


def highest(scores: list[Tensor], fraction: float) -> set[int]:
    """The places of the int(n * fraction) highest."""
    return set(sorted(range(len(scores)), key=lambda i: -float(scores[i]))[: int(len(scores) * fraction)])


def rsc_factor(sample: list[Tensor], saliency: list[Tensor], channel: bool, fraction: float = 1 / 3) -> Tensor:
    """Huang et al., for one sample: the factor [1 or C, *S or 1, …]."""
    weights = [-values.sum() / values.numel() for values in saliency]
    size = tuple(sample[0].shape)
    if channel:
        hit = highest(weights, fraction)
        return torch.tensor([0.0 if c in hit else 1.0 for c in range(len(sample))]).view(-1, *[1] * len(size))
    places = list(itertools.product(*map(range, size)))
    scores = [sum(weight * values[place] for weight, values in zip(weights, sample, strict=True)) for place in places]
    hit = highest(scores, fraction)
    return torch.tensor([0.0 if n in hit else 1.0 for n in range(len(places))]).view(1, *size)


def rsc(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Huang et al.: of what axis, the shape of the factor says."""
    samples, saliency = (samples_of(one.detach(), kind.layout) for one in (code, saliency_of(kind)))
    channel = params["factor"].shape[1] > 1
    factors = [rsc_factor(*both, channel) for both in zip(samples, saliency, strict=True)]
    return times(code, kind, torch.stack(factors))


def target_drop_factor(
    salient: list[Tensor], *, fraction: float = 0.15, block_size: int = 5, rescale: bool = True
) -> Tensor:
    """Zhu and Zhao, for one sample: the factor [C, *S]."""
    size = tuple(salient[0].shape)
    reach = [b // 2 for b in clipped(block_size, size)]
    factor = torch.ones(len(salient), *size, dtype=torch.float64)
    means = [values.sum() / values.numel() for values in salient]
    for c in highest(means, max(fraction, 1.5 / len(salient))):
        places = list(itertools.product(*map(range, size)))
        peak = max(places, key=lambda place: float(salient[c][place]))
        for place in places:
            if all(abs(a - b) <= r for a, b, r in zip(place, peak, reach, strict=True)):
                factor[(c, *place)] = 0
        if rescale:
            factor[c] *= math.prod(size) / max(float(factor[c].sum()), 1.0)
    return factor


def target_drop(
    code: Tensor, kind: Kind, params: dict[str, Any], *, score: str = "magnitude", **options: Any
) -> Tensor:
    """Zhu and Zhao: by the saliency."""
    samples, saliency = (samples_of(one.detach(), kind.layout) for one in (code, saliency_of(kind)))
    factors = []
    for sample, gradients in zip(samples, saliency, strict=True):
        salient = {
            "magnitude": lambda value, gradient: gradient.abs(),
            "signed": lambda value, gradient: gradient,
            "harm": lambda value, gradient: -gradient * value,
        }[score]
        factors.append(target_drop_factor([*map(salient, sample, gradients)], **options))
    return times(code, kind, torch.stack(factors))


def targeted_mask(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Chen et al.: what is above the value at rank k is annealed; of what axis, the shape of the factor says."""
    channel, saliency = params["factor"].shape[1] > 1, samples_of(saliency_of(kind), kind.layout)
    size, generator = tuple(saliency[0][0].shape), seeded()
    n = 6 if channel else math.prod(size)
    k = int(n * 0.5 * torch.rand((), generator=generator))
    annealing = 0.5 * torch.rand(4, n, generator=generator)
    factor = torch.ones(4, n)
    for i, gradients in enumerate(saliency):
        scores = [one.mean() for one in (gradients if channel else torch.stack(gradients).flatten(1).T)]
        for place in highest(scores, (k + 0.5) / n):
            factor[i, place] = annealing[i, place]
    return times(code, kind, factor.view(4, 6, *[1] * len(size)) if channel else factor.view(4, 1, *size))


ORACLES = {
    DropBlock: Oracle(lambda: DropBlock(0.3, 3), partial(drop_block, p=0.3, block_size=3)),
    RandomChannelMask: Oracle(RandomChannelMask, channel_dropout),
    TargetedChannelMask: Oracle(TargetedChannelMask, targeted_mask),
    TargetedSpatialMask: Oracle(TargetedSpatialMask, targeted_mask),
    ChannelDropout: Oracle(ChannelDropout, channel_dropout),
    Cutout: Oracle(Cutout, cutout),
    RSC: Oracle(RSC, rsc),
    TargetDrop: Oracle(TargetDrop, target_drop),
}
