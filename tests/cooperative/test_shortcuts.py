"""Fewer, smaller, rarer hard examples: each shortcut alone, and in a step against the step without it."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.masks import TargetedChannelMask
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.shortcuts import (
    Every,
    draw_samples,
    normal_noise,
    scaled_size,
    shrink_labels,
    taken,
)
from latentaug.cooperative.stages import HardStage
from latentaug.nets.functional import shrink
from tests.support.codes import seeded
from tests.support.cooperation import HARD, STANDARD, Spy, batch, case, cooperative, count_saliencies

CPU = torch.device("cpu")

# Rarer ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 2, 5])
def test_every_tells_the_first_call_and_each_after_a_period(period: int) -> None:
    every = Every(period)
    assert [every() for _ in range(11)] == [i % period == 0 for i in range(11)]


def test_the_count_of_every_is_a_tensor_of_its_state() -> None:
    every, again = Every(3), Every(3)
    for _ in range(4):
        every()
    state = every.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    again.load_state_dict(state)
    assert again.calls == 4
    assert [again() for _ in range(4)] == [every() for _ in range(4)] == [False, False, True, False]
    assert repr(every) == "Every(3)"


def test_between_two_saliencies_masks_of_the_same_kind_fall_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = count_saliencies(monkeypatch)
    spy = Spy(TargetedChannelMask(0.5, annealing=0))
    coop = cooperative(augment=spy, hard=HardExamples(saliency_every=3, noise=0))
    images, labels = batch()
    asked = []
    for seed in range(6):
        counted.clear()
        coop(images, labels, generator=seeded(seed))
        asked.append(len(counted))
    assert asked == [2, 0, 0, 2, 0, 0]
    assert all((call.factor == 0).sum(1).flatten().tolist() == [8, 8, 8] for call in spy.calls)
    factors = torch.stack([call.factor for call in spy.calls])
    assert len(factors[2:6].flatten(1).unique(dim=0)) == 4


def test_the_count_of_batches_goes_on_from_a_state_dict() -> None:
    coop, images, labels = case("shortcuts")
    for _ in range(3):
        coop(images, labels, generator=seeded())
    coop(images, labels, stage="standard")
    again, *_ = case("shortcuts")
    again.load_state_dict(coop.state_dict())
    copied = copy.deepcopy(coop)
    for one in (coop, again, copied):
        assert one.saliency_schedule is not None
        assert [one.saliency_schedule() for _ in range(4)] == [False, True, False, True]
    assert not [key for key in cooperative().state_dict() if "schedule" in key]


# Fewer ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "share", "number"), [(8, 0.5, 4), (8, 0.01, 1), (3, 0.6, 2), (5, 0.99, 5)])
def test_a_fraction_of_the_positions_is_drawn_in_order(size: int, share: float, number: int) -> None:
    samples = draw_samples(size, share, CPU, seeded())
    assert samples is not None
    assert len(samples) == number
    assert samples.tolist() == sorted({*samples.tolist()})
    assert {*samples.tolist()} == {*torch.randperm(size, generator=seeded())[:number].tolist()}


def test_all_of_a_batch_needs_no_draw_and_no_copy() -> None:
    generator = seeded()
    assert draw_samples(8, 1.0, CPU, generator) is None
    assert torch.equal(generator.get_state(), seeded().get_state())
    tensor = torch.rand(4, 2)
    assert taken(tensor, None) is tensor
    assert torch.equal(taken(tensor, torch.tensor([0, 3])), torch.stack([tensor[0], tensor[3]]))


def test_samples_that_are_taken_keep_the_memory_format_of_all() -> None:
    images = torch.rand(4, 3, 5, 6).to(memory_format=torch.channels_last)
    assert taken(images, torch.tensor([1, 2])).is_contiguous(memory_format=torch.channels_last)


def test_only_a_fraction_of_the_batch_is_turned_into_hard_examples() -> None:
    coop, images, labels = case("unet")
    torch.manual_seed(1)
    whole = coop(images, labels, generator=seeded())
    coop.hard = dataclasses.replace(coop.hard, fraction=0.6)
    torch.manual_seed(1)
    part = coop(images, labels, generator=seeded())
    samples = part.hard_samples
    assert whole.hard_samples is None
    assert part.hard_images.shape == (2, 1, 16, 20)
    assert torch.equal(part.hard_segmentation, whole.hard_segmentation[samples])
    for name in STANDARD:
        torch.testing.assert_close(part.losses[name], whole.losses[name], rtol=0, atol=0)
    torch.manual_seed(2)
    hard = coop(images, labels, stage=HardStage(part.hard_images, part.hard_segmentation, samples))
    torch.manual_seed(2)
    examples = HardStage(part.hard_images, part.hard_segmentation)
    by_hand = coop(images[samples], labels[samples], stage=examples)
    torch.testing.assert_close(hard.losses, by_hand.losses, rtol=0, atol=0)


def test_the_samples_are_drawn_from_the_generator() -> None:
    coop, images, labels = case("ftn", torch.float32)
    coop.hard = HardExamples(fraction=0.3)
    drawn = [int(coop(images, labels, generator=seeded(seed)).hard_samples) for seed in range(12)]
    assert drawn == [int(coop(images, labels, generator=seeded(seed)).hard_samples) for seed in range(12)]
    assert {*drawn} == {0, 1, 2}


# Smaller --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scale", "stride", "expected"),
    [
        ((192, 200), 0.5, (16, 16), (96, 96)),  # 6 and 6.25 positions
        ((16, 20), 0.5, (4, 4), (8, 8)),  # 2 and 2.5, of which the even is taken
        ((8, 64, 64), 0.25, (1, 8, 8), (2, 16, 16)),
        ((16, 16), 0.01, (4, 4), (4, 4)),  # one position at least
        ((10, 10), 0.9, (4, 4), (8, 8)),
        ((6, 6), 0.9, (8, 8), (6, 6)),  # never larger than the images
        ((17, 19), 1, (4, 4), (17, 19)),
    ],
)
def test_sizes_are_scaled_to_whole_positions(
    size: tuple[int, ...], scale: float, stride: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert scaled_size(size, scale, stride) == expected


def test_images_are_averaged_over_blocks() -> None:
    images = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    expected = torch.empty(2, 3, 2, 2, dtype=torch.float64)
    for y in range(2):
        for x in range(2):
            expected[..., y, x] = images[..., 2 * y : 2 * y + 2, 3 * x : 3 * x + 3].mean((-2, -1))
    torch.testing.assert_close(shrink(images, (2, 2)), expected)
    assert shrink(images, (4, 6)) is images


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_single_precision(dtype: torch.dtype) -> None:
    volumes = torch.rand(1, 2, 4, 4, 4, generator=seeded()).to(dtype)
    found = shrink(volumes, (2, 2, 2))
    assert found.dtype == dtype
    assert torch.equal(found, F.avg_pool3d(volumes.float(), 2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_labels_are_the_nearest_and_no_mixture(dtype: torch.dtype) -> None:
    labels = torch.randint(5, (2, 9, 6), generator=seeded()).to(dtype)
    found = shrink_labels(labels, (3, 2))
    assert found.dtype == dtype
    assert torch.equal(found, labels[:, 1::3, 1::3])  # the middle of each block
    assert shrink_labels(labels, (9, 6)) is labels


def test_smaller_hard_examples_are_compared_with_the_images_and_labels_at_their_size() -> None:
    coop, images, labels = case("unet", dropout=0)
    whole = coop(images, labels, generator=seeded())
    coop.hard = dataclasses.replace(coop.hard, scale=0.5)
    small = coop(images, labels, generator=seeded())
    size = small.hard_images.shape[2:]
    assert size == (8, 8)  # whole positions at stride 4
    torch.testing.assert_close(small.hard_images, F.adaptive_avg_pool2d(whole.hard_images, size))
    torch.testing.assert_close(small.hard_segmentation, F.adaptive_avg_pool2d(whole.hard_segmentation, size))
    nearest = F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")[:, 0].long()
    examples = HardStage(small.hard_images, small.hard_segmentation)
    by_hand = coop(F.adaptive_avg_pool2d(images, size), nearest, stage=examples)
    torch.testing.assert_close({name: small.losses[name] for name in HARD}, by_hand.losses, rtol=0, atol=0)


# Noise in place of a saliency -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_noise_is_sampled_from_the_generator_in_the_type_of_the_tensor(dtype: torch.dtype) -> None:
    like = torch.zeros(2, 3, 4, dtype=dtype)
    noise = normal_noise(like, seeded(3))
    assert noise.dtype == dtype
    assert torch.equal(noise, torch.randn(2, 3, 4, generator=seeded(3)).to(dtype))
