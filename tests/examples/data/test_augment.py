from __future__ import annotations

import pytest
import torch
from torch import Tensor

from study.data.augment import augment, rescale, training_batch


def slices(n: int = 6, side: int = 32) -> tuple[Tensor, Tensor]:
    """A bright box on a ramp, labelled where it is; off-centre, so that every movement shows."""
    images = torch.linspace(0, 0.3, side).expand(n, 1, side, side).clone()
    labels = torch.zeros(n, side, side, dtype=torch.long)
    images[:, :, 8:20, 12:26] = 0.9
    labels[:, 8:20, 12:26] = 2
    return images, labels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_second_half_of_a_batch_is_the_slices_as_they_are() -> None:
    images, labels = slices(n=3)
    batch, batch_labels = training_batch(images, labels, 24, generator=seeded())
    assert batch.shape == (6, 1, 24, 24)
    assert batch_labels.shape == (6, 24, 24)
    assert torch.equal(batch[3:], rescale(images[..., 4:28, 4:28]))
    assert torch.equal(batch_labels[3:], labels[..., 4:28, 4:28])
    assert not torch.allclose(batch[:3], batch[3:], atol=0.1)


def test_every_slice_of_a_batch_spans_0_to_1() -> None:
    batch, _ = training_batch(*slices(), 24, generator=seeded())
    assert torch.equal(batch.amin((1, 2, 3)), torch.zeros(12))
    torch.testing.assert_close(batch.amax((1, 2, 3)), torch.ones(12))


def test_a_constant_slice_becomes_zero() -> None:
    assert torch.equal(rescale(torch.full((1, 1, 2, 2), 0.7)), torch.zeros(1, 1, 2, 2))


def test_labels_move_with_their_image() -> None:
    images, labels = slices(n=64)
    moved, moved_labels = augment(images, labels, generator=seeded())
    # Contrast and brightness leave the box, at least 0.8 · 0.9 - 0.1, brighter than the ramp, at most 1.2 · 0.3 + 0.1.
    bright = moved[:, 0] > 0.55
    agree = (bright == (moved_labels == 2)).flatten(1).float().mean(1)
    assert agree.min() > 0.95
    assert moved_labels.dtype == labels.dtype
    assert {*moved_labels.unique().tolist()} <= {0, 2}


def test_intensities_stay_within_the_range_of_their_slice() -> None:
    moved, _ = augment(*slices(n=64), generator=seeded())
    assert moved.min() >= 0
    assert moved.max() <= 0.9 + 1e-6


def test_slices_are_drawn_apart() -> None:
    moved, _ = augment(*slices(n=8), generator=seeded())
    for one in range(8):
        for other in range(one):
            assert not torch.allclose(moved[one], moved[other], atol=1e-3)


def test_areas_follow_the_scale() -> None:
    # 0.8² to 1.1² of the area, with some play for bending and for pixels.
    _, labels = slices(n=256)
    _, moved = augment(*slices(n=256), generator=seeded())
    ratio = (moved == 2).flatten(1).sum(1) / (labels == 2).flatten(1).sum(1)
    inside = (ratio > 0.5) & (ratio < 1.35)
    assert inside.float().mean() > 0.95
    assert ratio.median() == pytest.approx(0.95**2, abs=0.08)


def test_the_generator_decides_everything_and_the_global_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, second = augment(*slices(), generator=seeded()), augment(*slices(), generator=seeded())
    other = augment(*slices(), generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_the_given_slices_are_left_as_they_are() -> None:
    images, labels = slices()
    augment(images, labels, generator=seeded())
    assert torch.equal(images, slices()[0])
    assert torch.equal(labels, slices()[1])
