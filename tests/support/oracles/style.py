"""Loops for the transforms of style: one sample and one channel at a time, with the variances of the authors' code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.style import DSU, MixStyle, PermutedStyle, TriD
from latentaug.augment.style_exchange import CrossNorm, EFDMix
from tests.support.codes import Kind, code_of, samples_of
from tests.support.oracles.compare import Oracle

EPS, CROSS_NORM_EPS = 1e-6, 1e-5
Moments = tuple[Tensor, Tensor]


def moments(values: Tensor, detach: bool = False, eps: float = EPS) -> Moments:
    """Mean, and root of the unbiased variance plus eps, of a list of numbers."""
    values = values.detach() if detach else values
    n = values.numel()
    mean = values.sum() / n
    return mean, ((values - mean).square().sum() / max(n - 1, 1) + eps).sqrt()


def restyled(
    code: Tensor, kind: Kind, style: Callable[[list[list[Moments]], int, int], Moments], detach: bool
) -> Tensor:
    """Give channel c of sample i the mean and the deviation `style(moments of all, i, c)`."""
    samples = samples_of(code, kind.layout)
    all_moments = [[moments(values, detach) for values in channels] for channels in samples]
    changed = []
    for i, channels in enumerate(samples):
        changed.append([])
        for c, values in enumerate(channels):
            (mean, deviation), (new_mean, new_deviation) = all_moments[i][c], style(all_moments, i, c)
            changed[-1].append((values - mean) / deviation * new_deviation + new_mean)
    return code_of(changed, code, kind.layout)


def mix_style(code: Tensor, kind: Kind, params: dict[str, Any], *, detach: bool = True) -> Tensor:
    """Zhou et al.: between one's own and the partner's."""
    order, own = params["order"].tolist(), params["own"].tolist()

    def style(moments: list[list[Moments]], i: int, c: int) -> Moments:
        mine, theirs = moments[i][c], moments[order[i]][c]
        mean, deviation = (own[i] * a + (1 - own[i]) * b for a, b in zip(mine, theirs, strict=True))
        return mean, deviation

    return restyled(code, kind, style, detach)


def dsu(code: Tensor, kind: Kind, params: dict[str, Any], *, detach: bool = False) -> Tensor:
    """Li et al.: around one's own, as widely as the batch varies."""

    def style(all_moments: list[list[Moments]], i: int, c: int) -> Moments:
        moved = []
        for which, name in enumerate(("of_means", "of_deviations")):
            _, spread = moments(torch.stack([one[c][which] for one in all_moments]))
            moved.append(all_moments[i][c][which] + float(params[name][i, c]) * spread)
        return moved[0], moved[1]

    return restyled(code, kind, style, detach)


def permuted_style(code: Tensor, kind: Kind, params: dict[str, Any], *, detach: bool = False) -> Tensor:
    """Nuriel et al.: the partner's."""
    order = params["order"].tolist()
    return restyled(code, kind, lambda moments, i, c: moments[order[i]][c], detach)


def tri_d(code: Tensor, kind: Kind, params: dict[str, Any], *, detach: bool = True) -> Tensor:
    """Chen et al.: the numbers sampled, in the channels chosen."""
    changed = restyled(code, kind, lambda _, i, c: (params["mean"][i, c], params["deviation"][i, c]), detach)
    before, after = samples_of(code, kind.layout), samples_of(changed, kind.layout)
    rows = [
        [after[i][c] if params["chosen"][i, c] else values for c, values in enumerate(channels)]
        for i, channels in enumerate(before)
    ]
    return code_of(rows, code, kind.layout)


def efd_mix(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Zhang et al., equation 8: a value and the partner's of the same rank, found by counting."""
    samples, order, own = samples_of(code, kind.layout), params["order"].tolist(), params["own"].tolist()
    changed = []
    for i, channels in enumerate(samples):
        changed.append([])
        for c, values in enumerate(channels):
            mine, theirs = values.flatten(), samples[order[i]][c].flatten()
            at_rank = {rank_of(theirs, j): j for j in range(theirs.numel())}
            matched = torch.stack([theirs[at_rank[rank_of(mine, j)]] for j in range(mine.numel())])
            changed[-1].append((mine + (1 - own[i]) * (matched - mine.detach())).view(values.shape))
    return code_of(changed, code, kind.layout)


def rank_of(values: Tensor, j: int) -> int:
    """How many values come before the one at j: smaller ones, and equal ones at earlier positions."""
    return int((values < values[j]).sum()) + int((values[:j] == values[j]).sum())


def cross_norm(code: Tensor, kind: Kind, params: dict[str, Any], *, detach: bool = False) -> Tensor:
    """Tang et al.: the statistics of boxes, which are cut out."""
    samples, order = samples_of(code, kind.layout), params["order"].tolist()

    def box(name: str, i: int) -> tuple[slice, ...]:
        if name not in params:
            return (...,)
        return tuple(slice(first, behind) for first, behind in params[name][i].T.tolist())

    changed = []
    for i, channels in enumerate(samples):
        changed.append([])
        for c, values in enumerate(channels):
            part = values[box("content", i)]
            mean, deviation = moments(part, detach, CROSS_NORM_EPS)
            new_mean, new_deviation = moments(samples[order[i]][c][box("style", i)], detach, CROSS_NORM_EPS)
            styled = values.clone()
            styled[box("content", i)] = (part - mean) / deviation * new_deviation + new_mean
            changed[-1].append(styled)
    return code_of(changed, code, kind.layout)


ORACLES = {
    MixStyle: Oracle(lambda: MixStyle(p=1), mix_style),
    DSU: Oracle(lambda: DSU(p=1), dsu),
    PermutedStyle: Oracle(lambda: PermutedStyle(p=1), permuted_style),
    TriD: Oracle(lambda: TriD(p=1), tri_d),
    EFDMix: Oracle(lambda: EFDMix(p=1), efd_mix),
    CrossNorm: Oracle(lambda: CrossNorm("both", p=1), cross_norm),
}
