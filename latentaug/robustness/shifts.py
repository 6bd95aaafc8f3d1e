"""Shifts of images at five severities: of intensity, in any number of axes, and the artefacts of MR scanners."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from latentaug.augment.intensity import add_noise, blur, brighten, change_contrast, correct_gamma
from latentaug.nets.functional import resize, scaled_by, shrink

SEVERITIES = (1, 2, 3, 4, 5)

Shift: TypeAlias = Callable[[Tensor, int, torch.Generator], Tensor]
"""Callable (images [B, C, *S], severity, generator) -> images of the same shape, where labels stay where they were."""


def intensity_shifts() -> dict[str, Shift]:
    """Return shifts of intensity and sharpness, for images of one to three spatial axes.

    At severities 1 to 5: `noise` of 0.1 to 1.2 of the image's deviation; `blur` by a Gaussian of 0.5 to 3 pixels;
    `resolution`, 0.7 to 0.2 of the pixels along each axis; `contrast` of 0.75 to 0.15, around the mean; `gamma` of 1.3
    to 3, or of one over that; `brightness`, a factor of 1.2 to 3, or of one over that, of the image above its darkest
    value. All relate to each image's own range or deviation, so that images in 0..1, in 0..255 or z-scored are changed
    alike.

    Example:
        >>> shifts = intensity_shifts()
        >>> [*shifts]
        ['noise', 'blur', 'resolution', 'contrast', 'gamma', 'brightness']
        >>> shifts["blur"](torch.rand(2, 1, 16, 16), 3, torch.Generator()).shape
        torch.Size([2, 1, 16, 16])
    """
    return {
        "noise": _noise,
        "blur": _blur,
        "resolution": _resolution,
        "contrast": _contrast,
        "gamma": _gamma,
        "brightness": _brightness,
    }


def mr_artefacts() -> dict[str, Shift]:
    """Return artefacts of MR scanners, by TorchIO: `bias field`, `spike`, `ghosting` and `motion`.

    Of 2-D images each is changed as a volume of one slice. At severities 1 to 5: a bias field of coefficients up to 0.2
    to 1; one spike of 0.2 to 1.6 of the spectrum's maximum; four ghosts of 0.2 to 1.2 of the image; two movements of up
    to 0.5 to 4 degrees and pixels.

    Raises:
        ModuleNotFoundError: TorchIO is not installed.

    Example:
        >>> [*mr_artefacts()]
        ['bias field', 'spike', 'ghosting', 'motion']
    """
    import torchio

    def bias(by: float) -> Any:
        return torchio.RandomBiasField(coefficients=(by, by))

    def spike(by: float) -> Any:
        return torchio.RandomSpike(num_spikes=1, intensity=(by, by))

    def ghosting(by: float) -> Any:
        return torchio.RandomGhosting(num_ghosts=4, axes=(0, 1), intensity=(by, by))

    def motion(by: float) -> Any:
        return torchio.RandomMotion(degrees=by, translation=by, num_transforms=2)

    return {
        "bias field": _by_torchio(bias, (0.2, 0.4, 0.6, 0.8, 1.0)),
        "spike": _by_torchio(spike, (0.2, 0.4, 0.7, 1.1, 1.6)),
        "ghosting": _by_torchio(ghosting, (0.2, 0.4, 0.6, 0.9, 1.2)),
        "motion": _by_torchio(motion, (0.5, 1.0, 1.5, 2.5, 4.0)),
    }


def check_shifts(shifts: object) -> Mapping[str, Shift]:
    """Return shifts by their names.

    Raises:
        TypeError: They are no mapping from names to callables.
        ValueError: There is none.
    """
    if not isinstance(shifts, Mapping) or not all(
        isinstance(name, str) and callable(one) for name, one in shifts.items()
    ):
        raise TypeError(
            "shifts must be a mapping from names to callables (images, severity, generator) -> images; got "
            f"{shifts!r:.80}. Write {{**intensity_shifts(), 'mine': change}}."
        )
    if not shifts:
        raise ValueError("shifts must hold one shift at least; got none.")
    return shifts


def _at(severity: int, strengths: tuple[float, ...]) -> float:
    return strengths[severity - 1]


def _each(images: Tensor, value: float) -> Tensor:
    return torch.full(images.shape[:2], value, dtype=images.dtype, device=images.device)


def _either_way(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Return a factor or one over it, as likely, for each image."""
    coin = torch.rand(len(images), 1, generator=generator, device=generator.device).to(images.device) < 0.5
    return torch.where(coin, factor, 1 / factor).to(images.dtype).expand(images.shape[:2])


def _noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    return add_noise(images, _at(severity, (0.1, 0.2, 0.4, 0.7, 1.2)) * noise)


def _blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    deviation = _each(images, _at(severity, (0.5, 1.0, 1.5, 2.0, 3.0)))
    return blur(images, deviation[..., None].expand(*deviation.shape, images.ndim - 2))


def _resolution(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    size = images.shape[2:]
    return resize(shrink(images, scaled_by(size, _at(severity, (0.7, 0.5, 0.4, 0.3, 0.2)))), size)


def _contrast(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    return change_contrast(images, _each(images, _at(severity, (0.75, 0.6, 0.45, 0.3, 0.15))))


def _gamma(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    return correct_gamma(images, _either_way(images, _at(severity, (1.3, 1.6, 2.0, 2.5, 3.0)), generator))


def _brightness(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    axes = tuple(range(2, images.ndim))
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    factor = _either_way(images, _at(severity, (1.2, 1.5, 1.8, 2.3, 3.0)), generator)
    return (brighten(images - low, factor) + low).minimum(high)


def _by_torchio(transform: Callable[[float], Any], strengths: tuple[float, ...]) -> Shift:
    def shift(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
        changed = [_changed(transform(_at(severity, strengths)), image, generator) for image in images]
        return torch.stack(changed)

    return shift


def _changed(transform: Any, image: Tensor, generator: torch.Generator) -> Tensor:
    """Change an image, in 0..1, by a transform that draws from global streams; these are left as they were."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    low, high = image.amin(), image.amax()
    scaled = ((image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)).float().cpu()
    flat = scaled.ndim == 3
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            found: Tensor = transform(scaled[..., None] if flat else scaled)
    finally:
        random.setstate(state)
    found = found[..., 0] if flat else found
    return found.clamp(0, 1).to(image) * (high - low) + low
