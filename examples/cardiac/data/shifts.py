"""Shifts to choose methods by: kinds that no test has, each at three severities, all spelled out and seeded.

A U-Net that was trained plainly, on draw 0, loses about 4, 9 and 16 points of Dice under each kind at severity 1, 2 and
3. The tests' shifts take nine from it on average. That is all that the strengths were set by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cardiac.data.corruptions import seed_of, versions
from cardiac.data.preprocess import rescale_slices
from cardiac.data.readers import Frame

SEVERITIES = (1, 2, 3)
PIECES = 8
"""Of a random monotone curve."""
VOIDS = 3
"""Places that lose signal."""
WIDTHS = (0.04, 0.10)
"""Standard deviation of such a place, as a share of the image's side."""


class Kind(NamedTuple):
    """What a shift does to a volume [slice, row, column] in 0..1, given a strength, and its strength by severity."""

    change: Callable[[Tensor, float], Tensor]
    strengths: tuple[float, float, float]


def resolution(volume: Tensor, factor: float) -> Tensor:
    """Sample both axes of the plane at `factor` times their spacing, within a tenth of it, and back."""
    for axis in (1, 2):
        volume = _torchio(
            volume,
            "RandomAnisotropy",
            axes=(axis,),
            downsampling=(0.9 * factor, 1.1 * factor),
            image_interpolation="linear",
            scalars_only=True,
        )
    return volume


def gamma(volume: Tensor, log_gamma: float) -> Tensor:
    """Raise intensities to the power of e^`log_gamma`, or of e^-`log_gamma`."""
    signed = log_gamma if torch.rand(()) < 0.5 else -log_gamma
    return _torchio(volume, "RandomGamma", log_gamma=(signed, signed))


def noise(volume: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise of this deviation."""
    return _torchio(volume, "RandomNoise", mean=(0.0, 0.0), std=(deviation, deviation))


def blur(volume: Tensor, deviation: float) -> Tensor:
    """Blur every slice by a Gaussian, its deviation within a tenth of the one given, in voxels."""
    low, high = 0.9 * deviation, 1.1 * deviation
    return _torchio(volume, "RandomBlur", std=(0.0, 0.0, low, high, low, high))


def histogram(volume: Tensor, unevenness: float) -> Tensor:
    """Map intensities by a random rising curve from 0 to 1, of straight pieces whose slopes are log-normal."""
    rises = (unevenness * torch.randn(PIECES)).exp()
    heights = torch.cat([torch.zeros(1), rises.cumsum(0) / rises.sum()])
    place = volume.clamp(0, 1) * PIECES
    piece = place.floor().clamp(max=PIECES - 1).long()
    return heights[piece].lerp(heights[piece + 1], place - piece)


def inversion(volume: Tensor, amount: float) -> Tensor:
    """Take contrast from all that is brighter than a threshold of 0.4 to 0.6: at 0.5 none is left, beyond it turns."""
    threshold = 0.4 + 0.2 * torch.rand(())
    return torch.where(volume > threshold, threshold + (1 - 2 * amount) * (volume - threshold), volume)


def signal_loss(volume: Tensor, loss: float) -> Tensor:
    """Take a share of the signal away around some places near the centre, the same ones in all slices."""
    height, width = volume.shape[1:]
    row, column = torch.arange(height)[:, None] / height, torch.arange(width) / width
    for _ in range(VOIDS):
        (y, x), size = 0.3 + 0.4 * torch.rand(2), WIDTHS[0] + (WIDTHS[1] - WIDTHS[0]) * torch.rand(())
        volume = volume * (1 - loss * (-((row - y) ** 2 + (column - x) ** 2) / (2 * size**2)).exp())
    return volume


SHIFTS: Mapping[str, Kind] = {
    "Resolution": Kind(resolution, (4.7, 6.6, 8.2)),
    "Blur": Kind(blur, (1.8, 2.55, 3.4)),
    "Noise": Kind(noise, (0.12, 0.16, 0.2)),
    "Gamma": Kind(gamma, (0.37, 0.5, 0.75)),
    "Histogram": Kind(histogram, (0.65, 1.05, 1.4)),
    "Inversion": Kind(inversion, (0.425, 0.485, 0.535)),
    "SignalLoss": Kind(signal_loss, (0.4, 0.62, 0.77)),
}
"""By their names in what is kept of a training. The tests' artefacts, and other scanners, are none of these."""


def column_of(kind: str, severity: int) -> str:
    """Name what is scored under a shift: "Blur 2"."""
    return f"{kind} {severity}"


def shift(frame: Frame, kind: str, severity: int) -> Frame:
    """Return the frame under a shift, labels untouched, every slice scaled to 0..1 again.

    Args:
        frame: A frame at the size at which it is to be changed; halve afterwards, not before.
        kind: One of `SHIFTS`.
        severity: 1, 2 or 3.
    Draws:
        Everything once per volume, from a seed made of patient, phase, kind and severity: the result depends neither on
        the order of calls nor on the global random state, which is left alone.

    Raises:
        ValueError: an unknown kind or severity.
    """
    change, strength = _find(kind, severity)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(frame.patient, frame.phase, kind, severity))
        # A copy, in order: what is mapped into memory, or a view of more, is not summed in another order.
        changed = change(torch.tensor(np.ascontiguousarray(frame.image)), strength).numpy()
    return replace(frame, image=rescale_slices(changed.astype(np.float32)))


def recipe(kind: str, severity: int) -> dict[str, Any]:
    """Return, as plain data, all that decides about what `shift` makes of a frame."""
    _, strength = _find(kind, severity)
    return {
        "shift": kind,
        "severity": severity,
        "strength": strength,
        "code of shifts": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "versions": versions(),
    }


def _find(kind: str, severity: int) -> tuple[Callable[[Tensor, float], Tensor], float]:
    if kind not in SHIFTS:
        raise ValueError(f"`kind` must be one of {', '.join(SHIFTS)}; got {kind!r}.")
    if severity not in SEVERITIES:
        raise ValueError(f"`severity` must be one of {SEVERITIES}; got {severity}.")
    change, strengths = SHIFTS[kind]
    return change, strengths[severity - 1]


def _torchio(volume: Tensor, name: str, **parameters: Any) -> Tensor:
    """Change a volume as TorchIO does, its voxels taken for cubes of side 1."""
    import torchio

    changed: Tensor = getattr(torchio, name)(**parameters)(torchio.ScalarImage(tensor=volume[None])).data[0]
    return changed
