"""Images of nuclei that are drawn, a few for each domain, so that the example runs without data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from nuclei.images import DOMAINS, Frame, as_frame

SIDE = 64
IN_DOMAIN, ELSEWHERE = 40, 8
"""Images of the first domain, and of each other one."""


class Look(NamedTuple):
    """How a domain looks; lengths are in pixels, intensities in 0..255.

    Attributes:
        shape: Height and width.
        radius: Of a nucleus, the mean.
        background: Its intensity.
        contrast: What a nucleus adds to it; below 0 nuclei are darker.
        unevenness: Deviation of the illumination.
        blur: Deviation of the optics.
        noise: Deviation of the camera.
    """

    shape: tuple[int, int]
    radius: float
    background: float
    contrast: float
    unevenness: float
    blur: float
    noise: float


LOOKS = {
    "fluo256": Look((SIDE, SIDE), 6, 8, 90, 1, 0.7, 3),
    "fluo360": Look((90, 90), 5, 6, 18, 1, 1.2, 2),
    "fluo520": Look((84, 110), 8, 12, 50, 6, 1.0, 8),
    "fluo-other": Look((72, 100), 9, 30, 60, 15, 1.5, 6),
    "stained": Look((SIDE, 80), 7, 190, -60, 12, 0.7, 12),
    "bright-grey": Look((96, 96), 8, 228, -110, 2, 0.7, 3),
}


def generate_images(seed: int = 0) -> dict[str, list[Frame]]:
    """Draw images by domain; the same seed, the same images."""
    images = {}
    for number, name in enumerate(DOMAINS):
        random = np.random.default_rng((seed, number))
        count = ELSEWHERE if number else IN_DOMAIN
        images[name] = [_draw(random, f"{name}-{index:02}", name) for index in range(count)]
    return images


def _draw(random: np.random.Generator, name: str, domain: str) -> Frame:
    look = LOOKS[domain]
    shape = look.shape
    signal, labels = np.zeros(shape), np.zeros(shape, bool)
    for _ in range(random.integers(4, 10)):
        inside = _nucleus(random, shape, look.radius)
        signal[inside] = random.uniform(0.6, 1.2)
        labels |= inside
    texture = 1 + 0.15 * _smooth(random, shape, 1.5)
    image = look.background + look.unevenness * _smooth(random, shape, 15) + look.contrast * signal * texture
    image = gaussian_filter(image, look.blur) + look.noise * random.standard_normal(shape)
    return as_frame(name, domain, image.clip(0, 255).round(), labels)


def _nucleus(random: np.random.Generator, shape: tuple[int, int], radius: float) -> npt.NDArray[np.bool_]:
    """Return the inside of an ellipse somewhere in the image."""
    axes = radius * random.uniform(0.7, 1.3, 2)
    angle, centre = random.uniform(0, np.pi), random.uniform(0, 1, 2) * shape
    y, x = np.indices(shape) - centre[:, None, None]
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    return np.asarray((along / axes[0]) ** 2 + (across / axes[1]) ** 2 <= 1)


def _smooth(random: np.random.Generator, shape: tuple[int, int], width: float) -> npt.NDArray[np.float64]:
    """Return a smooth random field of deviation 1."""
    field = gaussian_filter(random.standard_normal(shape), width, mode="wrap")
    return np.asarray(field / field.std())
