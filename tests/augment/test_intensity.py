"""Intensity changes against loops over samples and channels, written from their formulae."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from latentaug.augment.base import LatentTransform
from latentaug.augment.intensity import StrongIntensity
from tests.support.codes import KINDS, Kind, seeded
from tests.support.oracles.intensity import LOOPS, PARTS, strong_intensity

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
EVERY_PART = pytest.mark.parametrize("part", PARTS)
CHANCES = {"noise": 0.1, "blur": 0.2, "brightness": 0.15, "contrast": 0.15, "resolution": 0.25}
CHANCES |= {"inverted_gamma": 0.1, "gamma": 0.3}  # nnU-Net's


def only(*parts: str, **options: Any) -> StrongIntensity:
    return StrongIntensity(**dict.fromkeys(PARTS, 0) | dict.fromkeys(parts, 1) | options)


@EVERY_KIND
@pytest.mark.parametrize(
    "transform", [*(only(part) for part in PARTS), only(*PARTS), StrongIntensity(**dict.fromkeys(PARTS, 0.5))], ids=repr
)
def test_agrees_with_a_loop_in_values_and_gradients(kind: Kind, transform: StrongIntensity) -> None:
    code = kind.code().requires_grad_()
    change = transform(code, layout=kind.layout, generator=seeded(2))
    changed, expected = change.apply(code), strong_intensity(code, kind, change.params)
    torch.testing.assert_close(changed, expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(changed, code, atol=1e-3)
    target = kind.code(seed=1)
    gradient, wanted = (torch.autograd.grad((one * target).sum(), code)[0] for one in (changed, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_the_loops_tell_parts_and_numbers_apart() -> None:
    channel, number = torch.rand(8, 8, generator=seeded(), dtype=torch.float64), torch.tensor(0.8)
    given = {part: torch.full_like(channel, 0.8) if part == "noise" else number for part in PARTS}
    given["blur"] = number.expand(2)
    results = [LOOPS[part](channel, given[part]) for part in PARTS]
    results += [channel, *(LOOPS[part](channel, 0.7 * given[part]) for part in PARTS)]
    for one, other in itertools.combinations(results, 2):
        assert not torch.allclose(one, other)


# What is sampled --------------------------------------------------------------------------------------------------


def test_the_default_chances_are_nnunets() -> None:
    assert {part: getattr(StrongIntensity(), part) for part in PARTS} == CHANCES
    images = torch.rand(4000, 1, 4, generator=seeded())
    params = StrongIntensity()(images, generator=seeded()).params
    for part, chance in CHANCES.items():
        assert float(params[part]["chosen"].float().mean()) == pytest.approx(chance, abs=0.025)


@pytest.mark.parametrize(
    ("part", "low", "high"),
    [
        ("blur", 0.5, 1),
        ("brightness", 0.75, 1.25),
        ("contrast", 0.75, 1.25),
        ("resolution", 0.5, 1),
        ("inverted_gamma", 0.7, 1.5),
        ("gamma", 0.7, 1.5),
    ],
)
def test_strengths_are_sampled_for_each_sample_and_channel(part: str, low: float, high: float) -> None:
    images = torch.rand(2000, 2, 4, 4, generator=seeded())
    by = only(part)(images, generator=seeded()).params[part]["by"]
    assert by.shape == ((2000, 2, 2) if part == "blur" else (2000, 2))
    assert len(by.unique()) > 0.9 * by.numel()
    assert low <= float(by.min()) < low + 0.01
    assert high - 0.01 < float(by.max()) <= high
    if part not in ("blur", "resolution"):
        assert float((by < 1).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_noise_has_a_deviation_of_up_to_a_tenth_of_the_image_s_own() -> None:
    images = torch.rand(500, 1, 40, 40, generator=seeded()) * 200
    change = only("noise")(images, generator=seeded())
    added = (change.transform.transform(images, **change.params) - images)[:, :, 10:30, 10:30]
    inside = (images > 60) & (images < 140)  # where nothing is clipped
    added = torch.where(inside[:, :, 10:30, 10:30], added, torch.nan)
    relative = added.square().flatten(1).nanmean(1).sqrt() / images.flatten(1).std(1)
    assert float(relative.quantile(0.99)) == pytest.approx(0.099, abs=0.008)
    assert float(relative.mean()) == pytest.approx(0.05, abs=0.005)


def test_chances_may_be_pairs() -> None:
    images = torch.rand(3000, 1, 4, generator=seeded())
    shares = set()
    for seed in range(5):
        chosen = only(gamma=(0.2, 0.6))(images, generator=seeded(seed)).params["gamma"]["chosen"]
        shares.add(float(chosen.float().mean()))
    assert all(0.17 < share < 0.63 for share in shares)
    assert max(shares) - min(shares) > 0.05  # one chance for each batch


def test_a_part_for_nobody_is_neither_sampled_nor_computed() -> None:
    images = torch.rand(3, 1, 8, 8, generator=seeded())
    assert only()(images, generator=seeded()).params == {}
    assert torch.equal(only().augment(images), images)
    assert [*only("blur")(images, generator=seeded()).params] == ["blur"]


@EVERY_PART
def test_samples_that_are_not_chosen_stay_as_they_are(part: str) -> None:
    images = torch.randn(50, 1, 40, generator=seeded())
    change = only(**{part: 0.5})(images, generator=seeded(1))
    same, chosen = (change.apply(images) == images).flatten(1).all(1), change.params[part]["chosen"]
    assert same[~chosen].all()
    assert int(same[chosen].sum()) <= 2  # of a resolution above 39.5 of 40 pixels all are kept
    assert 10 < int(chosen.sum()) < 40


# What becomes of images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 1, 30), (3, 1, 12, 15), (3, 4, 12, 15), (3, 2, 6, 8, 9)])
@pytest.mark.parametrize("shift", [0, -500])
def test_channels_keep_within_their_own_range(shape: tuple[int, ...], shift: float) -> None:
    images = 100 * torch.randn(shape, generator=seeded()) + shift
    changed = only(*PARTS).augment(images, generator=seeded(1))
    assert (changed.flatten(2).amin(2) >= images.flatten(2).amin(2)).all()
    assert (changed.flatten(2).amax(2) <= images.flatten(2).amax(2)).all()
    assert not torch.allclose(changed, images, rtol=0.01)


@EVERY_PART
def test_a_part_of_no_strength_changes_nothing(part: str) -> None:
    images = torch.randn(2, 1, 9, 9, generator=seeded(), dtype=torch.float64)
    change = only(part)(images, generator=seeded())
    neutral = {"noise": 0.0, "blur": 1e-3}.get(part, 1.0)
    by = torch.full_like(change.params[part]["by"], neutral)
    changed = change.transform.transform(images, **{part: {"chosen": torch.ones(2, dtype=torch.bool), "by": by}})
    torch.testing.assert_close(changed, images, rtol=0, atol=1e-5)


def test_low_resolution_of_all_pixels_but_a_few_keeps_lines_straight() -> None:
    ramp = torch.arange(12.0).expand(1, 1, 3, 12)
    by = torch.full((1, 1), 0.5)
    changed = only("resolution").transform(ramp, resolution={"chosen": torch.ones(1, dtype=torch.bool), "by": by})
    expected = torch.tensor([1, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5, 11])
    torch.testing.assert_close(changed[0, 0, 0], expected)


@EVERY_PART
@pytest.mark.parametrize("value", [0.0, -7.0, 1e4])
def test_constant_images_stay_finite_and_have_a_gradient(part: str, value: float) -> None:
    images = torch.full((2, 2, 5, 5), value, requires_grad=True)
    changed = only(part).augment(images, generator=seeded())
    torch.testing.assert_close(changed, images)
    assert torch.autograd.grad(changed.sum(), images)[0].isfinite().all()


def test_half_precision_is_changed_in_float32() -> None:
    images = (torch.rand(2, 1, 32, 32, generator=seeded()) * 200).half()
    change = only(*PARTS)(images, generator=seeded(1))
    changed = change.apply(images)
    assert changed.dtype == torch.float16
    assert changed.isfinite().all()
    assert torch.equal(changed, change.apply(images.float()).half())


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (2, 1, 1, 1), (2, 1, 1)])
def test_small_and_empty_batches(shape: tuple[int, ...]) -> None:
    changed = only(*PARTS).augment(torch.ones(shape), generator=seeded())
    assert changed.shape == shape
    assert changed.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 12, 15), (3, 6, 8, 9)])
def test_a_single_image_is_a_batch_of_one(shape: tuple[int, ...]) -> None:
    image, transform = torch.rand(shape, generator=seeded()), only(*PARTS)
    alone = transform.augment(image, generator=seeded(1), batched=False)
    assert torch.equal(alone, transform.augment(image.unsqueeze(0), generator=seeded(1)).squeeze(0))


def test_a_sample_depends_on_itself_alone() -> None:
    images = torch.rand(4, 1, 12, 12, generator=seeded())
    change = only(*PARTS)(images, generator=seeded(1))
    others = images.clone()
    others[1:] = torch.rand(3, 1, 12, 12, generator=seeded(2)) * 50
    torch.testing.assert_close(change.apply(others)[0], change.apply(images)[0])
    assert not torch.allclose(change.apply(images)[0], change.apply(images.flip(0))[0])


def test_a_chance_of_0_and_eval_mode_leave_images_alone() -> None:
    images = torch.rand(2, 1, 8, 8, generator=seeded())
    for transform in (only("gamma", p=0), only("gamma").eval()):
        assert transform.augment(images) is images


def test_a_gpu_need_not_be_waited_for() -> None:
    images = torch.empty(3, 2, 9, 9, device="meta")  # without numbers: whatever would ask for one raises
    change = only(*PARTS)(images, generator=seeded())
    assert {*change.params} == {*PARTS}
    assert change.apply(images).device.type == "meta"


@pytest.mark.parametrize("transform", [only(*PARTS), only("noise", "gamma")], ids=repr)
def test_given_its_params_a_change_is_one_graph(transform: LatentTransform) -> None:
    images = torch.rand(2, 1, 10, 12, generator=seeded())
    change = transform(images, generator=seeded(1))
    compiled = torch.compile(transform.transform, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, **change.params), change.apply(images))


def test_options_and_images_out_of_range_are_refused() -> None:
    for part in (*PARTS, "p"):
        with pytest.raises(ValueError, match=rf"{part} must be in \[0, 1\]; got 3"):
            StrongIntensity(**{part: 3})
    with pytest.raises(
        ValueError, match=r"StrongIntensity needs images of one to three spatial axes; got shape \(1, 1, 2, 2, 2, 2\)"
    ):
        StrongIntensity()(torch.ones(1, 1, 2, 2, 2, 2))
    assert repr(StrongIntensity(gamma=0.5)) == "StrongIntensity(gamma=0.5)"
