"""Shifts: images of their shape and scale, the same from one seed, and further away the more severe."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.robustness.shifts import SEVERITIES, Shift, check_shifts, intensity_shifts, mr_artefacts

INTENSITY = intensity_shifts()
ARTEFACTS = ("bias field", "spike", "ghosting", "motion")


def named(name: str) -> Shift:
    if name in INTENSITY:
        return INTENSITY[name]
    pytest.importorskip("torchio")
    return mr_artefacts()[name]


def images(axes: int = 2, count: int = 3) -> Tensor:
    """Smooth blobs, as images have them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, *(4,) * axes, generator=generator)
    return torch.nn.functional.interpolate(coarse, (24,) * axes, mode="bilinear" if axes == 2 else "trilinear")


def changed(shift: Shift, given: Tensor, severity: int, seed: int = 0) -> Tensor:
    return shift(given, severity, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", [*INTENSITY, *ARTEFACTS])
def test_images_keep_shape_and_are_finite_and_one_seed_gives_the_same(name: str, axes: int) -> None:
    shift, given = named(name), images(axes, 2)
    state, python = torch.get_rng_state(), random.getstate()
    for severity in SEVERITIES:
        found = changed(shift, given, severity)
        assert found.shape == given.shape
        assert found.isfinite().all()
        assert torch.equal(found, changed(shift, given, severity))
        assert not torch.equal(found, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python


def test_streams_are_left_alone_where_torchio_fails() -> None:
    shift, signals = named("motion"), torch.rand(2, 1, 8)  # it has no images of one axis
    state, python = torch.get_rng_state(), random.getstate()
    with pytest.raises(ValueError, match="4D tensor"):
        changed(shift, signals, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python


@pytest.mark.parametrize("name", [*INTENSITY, "bias field", "spike", "ghosting"])
def test_the_more_severe_the_further_from_the_image(name: str) -> None:
    shift, given = named(name), images(count=16)
    far = [(changed(shift, given, severity) - given).abs().mean() for severity in SEVERITIES]
    assert far == sorted(far)


@pytest.mark.parametrize("name", [*INTENSITY, *ARTEFACTS])
@pytest.mark.parametrize(("scale", "offset"), [(255.0, 0.0), (2.0, -1.0)])
def test_images_of_another_scale_are_changed_alike(name: str, scale: float, offset: float) -> None:
    shift, given = named(name), images()
    found = (changed(shift, given * scale + offset, 3) - offset) / scale
    torch.testing.assert_close(found, changed(shift, given, 3), rtol=1e-3, atol=1e-4)


def test_an_image_of_one_value_stays_finite() -> None:
    for shift in INTENSITY.values():
        assert changed(shift, torch.full((2, 1, 8, 8), 0.5), 5).isfinite().all()


@pytest.mark.parametrize(
    ("shifts", "error", "said"),
    [
        ({}, ValueError, "shifts must hold one shift at least"),
        ([INTENSITY["blur"]], TypeError, "shifts must be a mapping from names to callables"),
        ({"blur": 3}, TypeError, "shifts must be a mapping from names to callables"),
    ],
)
def test_what_are_no_shifts_is_refused(shifts: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        check_shifts(shifts)
