from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from study.methods.method import Transform
from study.methods.transforms import CHANGED, bias_field, gaussian_noise, random_convolution

TRANSFORMS = [random_convolution, bias_field, gaussian_noise]


def slices(n: int = 6, height: int = 24, width: int = 20) -> Tensor:
    images = torch.rand(n, 1, height, width, generator=torch.Generator().manual_seed(7))
    images[:, :, 6:14, 5:12] += 1
    images -= images.amin((1, 2, 3), keepdim=True)
    return images / images.amax((1, 2, 3), keepdim=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 5), height=st.integers(8, 30), width=st.integers(8, 30))
def test_slices_keep_their_shape_and_span_0_to_1(
    transform: Transform, seed: int, n: int, height: int, width: int
) -> None:
    changed = transform(slices(n, height, width), seeded(seed))
    assert changed.shape == (n, 1, height, width)
    assert changed.dtype == torch.float32
    assert torch.equal(changed.amin((1, 2, 3)), torch.zeros(n))
    torch.testing.assert_close(changed.amax((1, 2, 3)), torch.ones(n))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_generator_decides_and_nothing_else(transform: Transform) -> None:
    images, before = slices(), torch.get_rng_state()
    kept = images.clone()
    assert torch.equal(transform(images, seeded(1)), transform(images, seeded(1)))
    assert not torch.equal(transform(images, seeded(1)), transform(images, seeded(2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_about_half_of_the_slices_change_each_in_its_own_way(transform: Transform) -> None:
    images = slices(1).expand(200, -1, -1, -1)
    changed = transform(images, seeded())
    same = (changed == images).flatten(1).all(1)
    assert int(same.sum()) == pytest.approx((1 - CHANGED) * 200, abs=40)
    assert len(changed.flatten(1).unique(dim=0)) == 200 - int(same.sum()) + 1


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_nothing_moves(transform: Transform) -> None:
    """A box stays where it is, so its labels do: the edges that are strongest afterwards are the box's."""
    images = torch.zeros(100, 1, 32, 32)
    images[:, :, 10:22, 8:20] = 1
    changed = transform(images, seeded())
    changed = changed[(changed != images).flatten(1).any(1)]
    inside, outside = changed[..., 14:18, 12:16].mean((1, 2, 3)), changed[..., 26:30, 24:28].mean((1, 2, 3))
    left = changed[..., 14:18, 4:12].mean((1, 2))  # across the left edge, which is at 4 of 8
    steps = left.diff(dim=1).abs()
    contrast = (inside - outside).abs() > 0.3
    assert contrast.float().mean() > 0.7
    assert ((steps.argmax(1) - 3).abs()[contrast] <= 3).all()


def test_a_convolution_is_as_wide_as_its_kernel_at_most() -> None:
    images = torch.zeros(300, 1, 21, 21)
    images[:, :, 10, 10] = 1
    changed = random_convolution(images, seeded())
    background = changed[:, :, :1, :1]
    reach = [int(((one != at).nonzero()[:, 1:] - 10).abs().max()) for one, at in zip(changed, background, strict=True)]
    assert {*reach} == {0, 1, 2, 3}


def test_a_bias_field_is_smooth_and_positive() -> None:
    images = torch.ones(50, 1, 32, 32)
    images[..., 0, 0] = 0  # what scales back to 0..1 then leaves ratios alone
    fields = bias_field(images, seeded())
    fields = fields[(fields != images).flatten(1).any(1)][..., 1:, 1:]
    assert fields.min() > 0.05
    assert fields.diff(dim=-1).abs().max() < 0.15
    assert (fields.amax((1, 2, 3)) / fields.amin((1, 2, 3))).max() > 2


def test_noise_is_of_any_strength_up_to_its_limit() -> None:
    images = torch.full((400, 1, 24, 24), 0.5)
    images[..., 0, 0], images[..., 0, 1] = -50, 50  # so that scaling divides by 100
    noise = 100 * gaussian_noise(images, seeded())[..., 1:, :].flatten(1).std(1)
    noise = noise[noise > 1e-3]
    assert noise.max() < 0.23
    assert noise.mean() == pytest.approx(0.1, abs=0.02)
