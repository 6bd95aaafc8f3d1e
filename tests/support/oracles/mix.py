"""Loops for the transforms that mix samples and labels."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.mix import ManifoldMixup, MoEx
from tests.support.codes import Kind, code_of, samples_of
from tests.support.oracles.compare import Oracle
from tests.support.oracles.style import moments

EPS = 1e-5


def manifold_mixup(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Verma et al.: whole samples, prefix tokens too, and so in any layout."""
    own = float(params["own"])
    return torch.stack([own * code[i] + (1 - own) * code[j] for i, j in enumerate(params["order"].tolist())])


def mo_ex(
    code: Tensor, kind: Kind, params: dict[str, Any], *, statistics: str = "positional", detach: bool = False
) -> Tensor:
    """Li et al.: sets of numbers that share a mean and a deviation, one after the other."""
    samples, order = [torch.stack(channels) for channels in samples_of(code, kind.layout)], params["order"].tolist()
    channels, *size = samples[0].shape
    if statistics == "positional":
        sets: list[tuple[Any, ...]] = [(slice(None), *place) for place in itertools.product(*map(range, size))]
    else:
        sets = [(c,) for c in range(channels)] if statistics == "instance" else [()]
    changed = []
    for i, sample in enumerate(samples):
        rows = torch.zeros_like(sample)
        for members in sets:
            values = sample[members]
            mean, deviation = moments(values, detach, EPS)
            new_mean, new_deviation = moments(samples[order[i]][members], detach, EPS)
            rows[members] = (values - mean) / deviation * new_deviation + new_mean
        changed.append(list(rows))
    return code_of(changed, code, kind.layout)


ORACLES = {ManifoldMixup: Oracle(ManifoldMixup, manifold_mixup), MoEx: Oracle(lambda: MoEx(p=1), mo_ex)}
