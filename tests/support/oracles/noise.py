"""Loops for noise on a code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentaug.augment.noise import AdditiveNoise, MultiplicativeNoise
from tests.support.codes import Kind, code_of, samples_of, seeded
from tests.support.oracles.compare import Oracle


def additive_noise(code: Tensor, kind: Kind, params: dict[str, Any], *, detach: bool = True) -> Tensor:
    """In proportion to each channel's deviation, which is a constant."""
    changed = []
    for i, channels in enumerate(samples_of(code, kind.layout)):
        strength = float(params["strength"][i])
        noise = params["noise"][i].double()
        deviations = [values.detach().std() if detach else values.std() for values in channels]
        changed.append([values + strength * deviations[c] * noise[c] for c, values in enumerate(channels)])
    return code_of(changed, code, kind.layout)


def multiplicative_noise(
    code: Tensor, kind: Kind, params: dict[str, Any], *, strength: tuple[float, float] = (0.0, 0.5)
) -> Tensor:
    """With the random numbers, in the order in which they are sampled."""
    generator, (low, high) = seeded(), strength
    strengths = low + (high - low) * torch.rand(4, generator=generator)
    noise = torch.randn(4, 6, generator=generator)
    changed = [
        [values * float(1 + strengths[i] * noise[i, c]) for c, values in enumerate(channels)]
        for i, channels in enumerate(samples_of(code, kind.layout))
    ]
    return code_of(changed, code, kind.layout)


ORACLES = {
    AdditiveNoise: Oracle(AdditiveNoise, additive_noise),
    MultiplicativeNoise: Oracle(MultiplicativeNoise, multiplicative_noise),
}
