"""Loops for the transforms of style: one sample and one channel at a time, with the variances of the authors' code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.style import DSU, MixStyle
from tests.support.codes import Kind, code_of, samples_of
from tests.support.oracles.compare import Oracle

EPS = 1e-6
Moments = tuple[Tensor, Tensor]


def moments(values: Tensor, detach: bool = False) -> Moments:
    """Mean, and root of the unbiased variance plus eps, of a list of numbers."""
    values = values.detach() if detach else values
    n = values.numel()
    mean = values.sum() / n
    return mean, ((values - mean).square().sum() / max(n - 1, 1) + EPS).sqrt()


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


ORACLES = {
    MixStyle: Oracle(lambda: MixStyle(p=1), mix_style),
    DSU: Oracle(lambda: DSU(p=1), dsu),
}
