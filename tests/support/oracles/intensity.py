"""Loops for the parts of nnU-Net's changes of intensity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.intensity import DARKEST, StrongIntensity
from tests.support.codes import Kind, code_of, samples_of
from tests.support.oracles.compare import Oracle

PARTS = ("noise", "blur", "brightness", "contrast", "resolution", "inverted_gamma", "gamma")


# One channel [*S] of one sample at a time -------------------------------------------------------------------------


def along_axes(channel: Tensor, line: Callable[[int, list[Tensor]], list[Tensor]]) -> Tensor:
    """Replace each line of a channel, along one axis after the other."""
    for axis in range(channel.ndim):
        rows = channel.movedim(axis, -1)
        lines = [torch.stack(line(axis, list(row))) for row in rows.reshape(-1, rows.shape[-1])]
        channel = torch.stack(lines).view(rows.shape).movedim(-1, axis)
    return channel


def noisy(channel: Tensor, noise: Tensor) -> Tensor:
    return channel + channel.std(correction=0) * noise


def blurred(channel: Tensor, deviation: Tensor) -> Tensor:
    def line(axis: int, row: list[Tensor]) -> list[Tensor]:
        result = []
        for i in range(len(row)):
            weights = [math.exp(-((i - j) ** 2) / (2 * float(deviation[axis]) ** 2)) for j in range(len(row))]
            result.append(sum(w * one for w, one in zip(weights, row, strict=True)) / sum(weights))
        return result

    return along_axes(channel, line)


def brighter(channel: Tensor, factor: Tensor) -> Tensor:
    return channel * factor


def with_contrast(channel: Tensor, factor: Tensor) -> Tensor:
    changed = (channel - channel.mean()) * factor + channel.mean()
    return changed.maximum(channel.min()).minimum(channel.max())


def of_low_resolution(channel: Tensor, zoom: Tensor) -> Tensor:
    def line(axis: int, row: list[Tensor]) -> list[Tensor]:
        n = len(row)
        kept = max(1, round(float(zoom * n)))
        few = [row[((2 * j + 1) * n) // (2 * kept)] for j in range(kept)]
        result = []
        for i in range(n):
            where = min(max((i + 0.5) * kept / n - 0.5, 0), kept - 1)
            j = int(where)
            result.append((1 - where + j) * few[j] + (where - j) * few[min(j + 1, kept - 1)])
        return result

    return along_axes(channel, line)


def with_gamma(channel: Tensor, gamma: Tensor) -> Tensor:
    scaled = (channel - channel.min()) / (channel.max() - channel.min())
    changed = scaled.clamp_min(DARKEST) ** gamma
    return (changed - changed.mean()) / changed.std() * channel.std() + channel.mean()


def with_inverted_gamma(channel: Tensor, gamma: Tensor) -> Tensor:
    scaled = (channel.max() - channel) / (channel.max() - channel.min())
    changed = 1 - scaled.clamp_min(DARKEST) ** gamma
    return (changed - changed.mean()) / changed.std() * channel.std() + channel.mean()


LOOPS = dict(
    zip(
        PARTS,
        (noisy, blurred, brighter, with_contrast, of_low_resolution, with_inverted_gamma, with_gamma),
        strict=True,
    )
)


def strong_intensity(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
    """The parts of nnU-Net's augmentation, each on the channels that it was sampled for."""
    rows = []
    for i, channels in enumerate(samples_of(code, kind.layout)):
        row = []
        for c, channel in enumerate(channels):
            size, changed = channel.shape, channel
            for part in PARTS:
                if part in params and params[part]["chosen"][i]:
                    changed = LOOPS[part](changed, params[part]["by"][i, c].double())
            row.append(changed.maximum(channel.min()).minimum(channel.max()).view(size))
        rows.append(row)
    return code_of(rows, code, kind.layout)


ORACLES = {StrongIntensity: Oracle(lambda: StrongIntensity(**dict.fromkeys(PARTS, 0.5)), strong_intensity)}
