"""The MR artefacts from TorchIO that are tested on, every parameter spelled out and seeded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cardiac.data.preprocess import rescale_slices
from cardiac.data.readers import Frame

if TYPE_CHECKING:
    import torchio

# TorchIO's defaults of 2021, which the published results were made with, and the paper's larger motion. Written out
# because defaults drift: RandomGhosting restored 2 % of k-space then and restores one plane now.
PARAMETERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "RandBias": ("RandomBiasField", {"coefficients": (-0.5, 0.5), "order": 3}),
    "RandSpike": ("RandomSpike", {"num_spikes": (1, 1), "intensity": (1.0, 3.0)}),
    "RandGhosting": (
        "RandomGhosting",
        {"num_ghosts": (4, 10), "axes": (0, 1, 2), "intensity": (0.5, 1.0), "restore": (0.02, 0.02)},
    ),
    "RandMotion": (
        "RandomMotion",
        {
            "degrees": (-30.0, 30.0),
            "translation": (-10.0, 10.0),
            "num_transforms": 2,
            "image_interpolation": "linear",
        },
    ),
}

SPACINGS = ("voxel", "unit")


def corrupt(frame: Frame, corruption: str, draw: int, *, spacing: str = "voxel") -> Frame:
    """Return the frame as one artefact would have left it, labels untouched, every slice scaled to 0..1 again.

    Args:
        frame: A frame at the size at which it is to be corrupted; halve afterwards, not before.
        corruption: One of `PARAMETERS`, such as "RandBias".
        draw: Which of the repetitions this is.
        spacing: "voxel" moves the patient in millimetres; "unit" takes every voxel for 1 mm cubed, as the released
            script of the paper's authors does.
    Draws:
        Everything once per volume, from a seed made of patient, phase, corruption and draw: the result depends neither
        on the order of calls nor on the global random state, which is left alone.

    Raises:
        ValueError: an unknown corruption or spacing.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"`spacing` must be one of {', '.join(SPACINGS)}; got {spacing!r}.")
    import torchio

    transform = _transform(corruption)
    # TorchIO's three axes are the array's, in their order: slices first, so that motion, which fills k-space along the
    # last axis, happens in the plane, where a short-axis stack is encoded.
    affine = np.diag([*(frame.spacing if spacing == "voxel" else (1.0, 1.0, 1.0)), 1.0])
    volume = torchio.ScalarImage(tensor=torch.as_tensor(frame.image)[None], affine=affine)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(frame.patient, frame.phase, corruption, draw))
        corrupted = transform(volume).data[0].numpy()
    return replace(frame, image=rescale_slices(corrupted.astype(np.float32)))


def recipe(corruption: str, draw: int, *, spacing: str) -> dict[str, Any]:
    """Return, as plain data, all that decides about what `corrupt` makes of a frame."""
    transform, parameters = _parameters(corruption)
    return {
        "corruption": corruption,
        "draw": draw,
        "spacing": spacing,
        "transform": transform,
        "parameters": dict(parameters),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide about voxels."""
    return {package: version(package) for package in ("torch", "torchio", "SimpleITK")}


def _transform(corruption: str) -> Callable[[torchio.ScalarImage], torchio.ScalarImage]:
    import torchio

    name, parameters = _parameters(corruption)
    return getattr(torchio, name)(**parameters)


def _parameters(corruption: str) -> tuple[str, Mapping[str, Any]]:
    if corruption not in PARAMETERS:
        raise ValueError(f"`corruption` must be one of {', '.join(PARAMETERS)}; got {corruption!r}.")
    return PARAMETERS[corruption]


def seed_of(*key: object) -> int:
    """Return a seed that is made of a key, the same in every process."""
    # Not hash(): Python salts it anew in every process.
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "little")
