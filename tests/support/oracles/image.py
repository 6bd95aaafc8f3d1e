"""Loops for the transforms of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.image import GIN
from tests.support.codes import Kind, code_of, samples_of
from tests.support.oracles.compare import Oracle

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def filtered_by_loop(image: Tensor, weights: list[Tensor], shifts: list[Tensor], strength: float) -> Tensor:
    """What becomes of one image [C, *S]."""
    filtered = image
    for layer, (weight, shift) in enumerate(zip(weights, shifts, strict=True)):
        conv, padding = CONV[image.ndim - 1], [size // 2 for size in weight.shape[2:]]
        filtered = conv(filtered.unsqueeze(0), weight, shift, padding=padding).squeeze(0)
        if layer < len(weights) - 1:
            filtered = torch.where(filtered > 0, filtered, 0.01 * filtered)
    mixed = strength * filtered + (1 - strength) * image
    return mixed * (image.square().sum().sqrt() / mixed.square().sum().sqrt())


def gin(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Ouyang et al.: a network for each sample."""
    rows = []
    for i, channels in enumerate(samples_of(code, kind.layout)):
        weights, shifts = ([one[i].double() for one in params[name]] for name in ("weights", "shifts"))
        rows.append(list(filtered_by_loop(torch.stack(channels), weights, shifts, float(params["strength"][i]))))
    return code_of(rows, code, kind.layout)


ORACLES = {GIN: Oracle(GIN, gin)}
