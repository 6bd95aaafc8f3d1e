"""Loops for the transforms of images."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.image import GIN, IPA, RandConv
from tests.support.codes import Kind, code_of, samples_of
from tests.support.oracles.compare import Oracle

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def randconv_by_loop(image: Tensor, kernel: Tensor, strength: float) -> Tensor:
    """What becomes of one image [C, *S], entry by entry of its kernel."""
    reach, axes = kernel.shape[-1] // 2, tuple(range(1, image.ndim))
    filtered = torch.zeros_like(image)
    padded = F.pad(image, [reach] * 2 * len(axes))
    for out, channel in itertools.product(range(len(image)), repeat=2):
        for place in itertools.product(range(kernel.shape[-1]), repeat=len(axes)):
            window = tuple(slice(at, at + n) for at, n in zip(place, image.shape[1:], strict=True))
            filtered[out] += kernel[(out, channel, *place)] * padded[(channel, *window)]
    mixed = strength * filtered + (1 - strength) * image
    return (mixed - mixed.mean()) / mixed.std() * image.std() + image.mean()


def bump(x: float) -> float:
    """The quadratic B-spline."""
    return 0.75 - x * x if abs(x) < 0.5 else max(0.0, 1.5 - abs(x)) ** 2 / 2


def field_by_loop(points: Tensor, size: tuple[int, ...]) -> Tensor:
    """The field of one sample's control points [*points], position by position."""
    field = torch.zeros(size, dtype=points.dtype)
    for position in itertools.product(*map(range, size)):
        for control in itertools.product(*map(range, points.shape)):
            weight = 1.0
            for at, length, c, n in zip(position, size, control, points.shape, strict=True):
                weight *= bump(0.5 + (n - 2) * (at + 0.5) / length - c)
            field[position] += weight * points[control]
    return (field - field.min()) / (field.max() - field.min())


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


def randconv(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Xu et al.: a kernel for each sample."""
    rows = []
    for i, channels in enumerate(samples_of(code, kind.layout)):
        kernel, strength = params["weights"][i].double(), float(params["strength"][i])
        rows.append(list(randconv_by_loop(torch.stack(channels), kernel, strength)))
    return code_of(rows, code, kind.layout)


def ipa(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """Ouyang et al.: two networks for each sample, and a smooth field between what they make of it."""
    rows = []
    for i, channels in enumerate(samples_of(code, kind.layout)):
        image, both = torch.stack(channels), []
        for name in ("first", "second"):
            weights, shifts = ([one[i].double() for one in params[name][part]] for part in ("weights", "shifts"))
            both.append(filtered_by_loop(image, weights, shifts, float(params[name]["strength"][i])))
        field = field_by_loop(params["points"][i, 0].double(), tuple(image.shape[1:]))
        rows.append(list(field * both[0] + (1 - field) * both[1]))
    return code_of(rows, code, kind.layout)


ORACLES = {GIN: Oracle(GIN, gin), RandConv: Oracle(RandConv, randconv), IPA: Oracle(lambda: IPA(intervals=3), ipa)}
