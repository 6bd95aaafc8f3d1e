"""Loops for changes that are learned against a model, given what was learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.adversarial import FGSM, VAT, AdvStyle, MaxStyle
from tests.support.codes import Kind, code_of, samples_of, seeded
from tests.support.oracles.compare import Oracle, divergence_of, saliency_of

EPS = 1e-6


def moments(values: Tensor) -> tuple[float, float]:
    """Mean and deviation of one channel, no gradient through them."""
    values = values.detach()
    mean = values.sum() / values.numel()
    variance = (values - mean).square().sum() / max(values.numel() - 1, 1)
    return float(mean), math.sqrt(float(variance) + EPS)


def deviation(values: list[float]) -> float:
    """The unbiased deviation of some numbers."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def max_style(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Chen et al., MICCAI 2022: mixtures of two styles, and noise in proportion to how styles differ in the batch."""
    samples = samples_of(code, kind.layout)
    table = [[moments(values) for values in channels] for channels in samples]
    rows: list[list[Tensor]] = []
    for i, channels in enumerate(samples):
        partner, own = int(params["order"][i]), float(params["own"][i])
        rows.append([])
        for c, values in enumerate(channels):
            (mean, sigma), (mean2, sigma2) = table[i][c], table[partner][c]
            spread_of_mean = deviation([row[c][0] for row in table])
            spread_of_sigma = deviation([row[c][1] for row in table])
            new_sigma = own * sigma + (1 - own) * sigma2 + float(params["scale_noise"][i, c]) * spread_of_sigma
            new_mean = own * mean + (1 - own) * mean2 + float(params["shift_noise"][i, c]) * spread_of_mean
            rows[-1].append((values - mean) / sigma * new_sigma + new_mean)
    return code_of(rows, code, kind.layout)


def adv_style(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """After Zhong et al.: statistics along the sign of their gradients, which follow from the saliency."""
    rows: list[list[Tensor]] = []
    strength = float(params["strength"])
    given = zip(samples_of(code, kind.layout), samples_of(saliency_of(kind), kind.layout), strict=True)
    for channels, gradients in given:
        rows.append([])
        for values, gradient in zip(channels, gradients, strict=True):
            mean, sigma = moments(values)
            scale = math.copysign(strength, float((gradient * (values.detach() - mean)).sum()))
            shift = math.copysign(strength, float(gradient.sum()))
            rows[-1].append((values - mean) / sigma * (sigma * (1 + scale)) + mean + sigma * shift)
    return code_of(rows, code, kind.layout)


def fgsm(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Goodfellow et al.: the sign of the saliency, in proportion to the sample's code."""
    rows = []
    given = zip(samples_of(code, kind.layout), samples_of(saliency_of(kind), kind.layout), strict=True)
    for channels, gradients in given:
        size = torch.stack(channels).detach().square().mean().sqrt()
        rows.append([v + 0.1 * size * g.sign() for v, g in zip(channels, gradients, strict=True)])
    return code_of(rows, code, kind.layout)


def vat(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Miyato et al.: a power iteration on the divergence, which is one of `divergence_of`, from random numbers on."""
    random = torch.randn(kind.layout.to_channels_first(code).shape, generator=seeded()).double()
    factors = samples_of(divergence_of(kind)[1], kind.layout)
    rows = []
    for i, channels in enumerate(samples_of(code, kind.layout)):
        together = torch.stack(channels).detach()
        d = random[i].reshape(together.shape) * torch.stack(factors[i]) ** 2
        rows.append([values + one for values, one in zip(channels, 0.1 * together.norm() * d / d.norm(), strict=True)])
    return code_of(rows, code, kind.layout)


ORACLES = {
    MaxStyle: Oracle(lambda: MaxStyle(p=1, steps=2), max_style),
    AdvStyle: Oracle(AdvStyle, adv_style),
    FGSM: Oracle(FGSM, fgsm),
    VAT: Oracle(VAT, vat),
}
