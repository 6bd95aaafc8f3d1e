from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from cardiac.data.corruptions import PARAMETERS, corrupt
from cardiac.data.readers import Frame

torchio = pytest.importorskip("torchio")


@pytest.fixture
def frame() -> Frame:
    z, y, x = np.meshgrid(np.arange(6), np.arange(24), np.arange(20), indexing="ij")
    image = 0.5 + 0.3 * np.sin(x / 3) * np.cos(y / 4) + 0.02 * z
    labels = (image > 0.6).astype(np.uint8)
    spacing, structures = (10.0, 1.36719, 1.36719), ("LV", "MYO", "RV")
    return Frame("007", "ED", image.astype(np.float32), labels, spacing, structures, {}, {})


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_corruption_changes_the_image_alone(frame: Frame, name: str) -> None:
    before = frame.image.copy()
    corrupted = corrupt(frame, name, 0)
    assert corrupted.image.shape == frame.image.shape
    assert corrupted.image.dtype == np.float32
    assert np.abs(corrupted.image - frame.image).max() > 0.05
    assert corrupted.labels is frame.labels
    np.testing.assert_array_equal(frame.image, before)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_slice_is_scaled_to_0_1_again(frame: Frame, name: str) -> None:
    image = corrupt(frame, name, 0).image
    np.testing.assert_array_equal(image.min((1, 2)), np.zeros(6))
    np.testing.assert_allclose(image.max((1, 2)), np.ones(6), rtol=1e-6)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_result_depends_on_the_key_and_not_on_what_came_before(frame: Frame, name: str) -> None:
    first = corrupt(frame, name, 1).image
    torch.rand(7)
    corrupt(frame, "RandBias", 0)
    np.testing.assert_array_equal(corrupt(frame, name, 1).image, first)
    others = [
        corrupt(frame, name, 2),
        corrupt(dataclasses.replace(frame, patient="008"), name, 1),
        corrupt(dataclasses.replace(frame, phase="ES"), name, 1),
    ]
    for other in others:
        assert not np.array_equal(other.image, first)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_global_random_state_is_left_alone(frame: Frame, name: str) -> None:
    state = torch.get_rng_state()
    corrupt(frame, name, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", PARAMETERS)
def test_no_parameter_is_left_to_the_librarys_defaults(name: str) -> None:
    transform, parameters = PARAMETERS[name]
    accepted = inspect.signature(getattr(torchio, transform)).parameters
    assert {*parameters} == {n for n, p in accepted.items() if p.kind is not p.VAR_KEYWORD}


def test_motion_fills_k_space_along_the_last_axis_of_the_plane(frame: Frame) -> None:
    # Where no movement is more than nil, nothing happens; moving along one axis only, spectra mix along the last one.
    image = torch.as_tensor(frame.image)[None]
    moved = torchio.Motion(
        degrees=np.zeros((1, 3)),
        translation=np.array([[0.0, 4.0, 0.0]]),
        times=np.array([0.3]),
        image_interpolation="linear",
    )(image)
    before, after = (np.fft.fftshift(np.fft.fftn(volume[0].numpy())) for volume in (image, moved))
    untouched = np.abs(after - before).max((0, 1)) < 1e-3 * np.abs(before).max()
    assert untouched[10]
    assert not untouched.all()


def test_voxel_spacing_reaches_the_motion(frame: Frame) -> None:
    voxel, unit = corrupt(frame, "RandMotion", 0), corrupt(frame, "RandMotion", 0, spacing="unit")
    assert np.abs(voxel.image - unit.image).max() > 0.01
    isotropic = dataclasses.replace(frame, spacing=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(corrupt(isotropic, "RandMotion", 0).image, unit.image)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"corruption": "Motion"}, "corruption"), ({"corruption": "RandBias", "spacing": "mm"}, "spacing")],
)
def test_unknown_names_are_refused(frame: Frame, arguments: dict[str, str], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be one of"):
        corrupt(frame, draw=0, **arguments)
