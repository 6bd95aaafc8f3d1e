"""Transforms of images against loops over samples, each filtered by kernels of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.base import LatentTransform
from latentaug.augment.image import GIN, IPA, RandConv, convolved, smooth_field, with_moments_of
from latentaug.augment.intensity import StrongIntensity
from tests.support.codes import KINDS, Kind, seeded
from tests.support.oracles.image import bump, field_by_loop, filtered_by_loop, gin, ipa, randconv, randconv_by_loop

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
EVERY_TRANSFORM = pytest.mark.parametrize("transform", [RandConv(), GIN(), IPA()], ids=repr)
SHAPES = [(3, 1, 30), (3, 1, 12, 15), (3, 4, 12, 15), (3, 1, 6, 8, 9), (3, 2, 6, 8, 9)]


@EVERY_KIND
@pytest.mark.parametrize("options", [{"kernel_sizes": (1, 3)}, {"kernel_sizes": (5,), "strength": 0.7}])
def test_randconv_agrees_with_a_loop_in_values_and_gradients(kind: Kind, options: dict[str, Any]) -> None:
    code = kind.code().requires_grad_()
    change = RandConv(**options)(code, layout=kind.layout, generator=seeded())
    agree(code, change.apply(code), randconv(code, kind, change.params), kind.code(seed=1))


@EVERY_KIND
def test_ipa_agrees_with_a_loop_in_values_and_gradients(kind: Kind) -> None:
    code = kind.code().requires_grad_()
    change = IPA(intervals=3)(code, layout=kind.layout, generator=seeded())
    agree(code, change.apply(code), ipa(code, kind, change.params), kind.code(seed=1))


def agree(code: Tensor, changed: Tensor, expected: Tensor, target: Tensor) -> None:
    """Compare values, and gradients with respect to the code."""
    torch.testing.assert_close(changed, expected, rtol=1e-7, atol=1e-7)
    gradient, wanted = (torch.autograd.grad((one * target).sum(), code)[0] for one in (changed, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6)


@EVERY_KIND
@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"layers": 3, "channels": 5, "kernel_sizes": (1, 3, 5)}])
def test_gin_agrees_with_a_loop_in_values_and_gradients(kind: Kind, options: dict[str, object]) -> None:
    code = kind.code().requires_grad_()
    change = GIN(**options)(code, layout=kind.layout, generator=seeded())
    weights, shifts = ([one.double() for one in change.params[name]] for name in ("weights", "shifts"))
    assert len(weights) == len(shifts) == options.get("layers", 4)
    agree(code, change.apply(code), gin(code, kind, change.params), kind.code(seed=1))


def test_the_loop_tells_networks_and_strengths_apart() -> None:
    image = torch.rand(1, 8, 8, generator=seeded(), dtype=torch.float64)
    weights, shifts = [torch.randn(1, 1, 3, 3, dtype=torch.float64)], [torch.randn(1, dtype=torch.float64)]
    torch.testing.assert_close(filtered_by_loop(image, weights, shifts, 0.0), image)
    assert not torch.allclose(filtered_by_loop(image, weights, shifts, 0.5), image)
    assert not torch.allclose(
        filtered_by_loop(image, [2 * weights[0]], shifts, 0.5), filtered_by_loop(image, weights, shifts, 0.5)
    )


def test_the_loops_tell_kernels_fields_and_strengths_apart() -> None:
    image, kernel = torch.rand(2, 6, 6, generator=seeded(), dtype=torch.float64), torch.randn(2, 2, 3, 3).double()
    torch.testing.assert_close(randconv_by_loop(image, kernel, 0.0), image)
    half, whole = (randconv_by_loop(image, kernel, strength) for strength in (0.5, 1.0))
    assert not torch.allclose(half, whole)
    assert not torch.allclose(randconv_by_loop(image, kernel.flip(-1), 1.0), whole)
    points = torch.randn(5, 4, generator=seeded(), dtype=torch.float64)
    field = field_by_loop(points, (6, 7))
    assert (float(field.min()), float(field.max())) == (0, 1)
    assert not torch.allclose(field_by_loop(points.flip(0), (6, 7)), field)
    assert bump(0) == 0.75
    assert bump(1.5) == 0
    assert bump(0.5) == pytest.approx(bump(0.5 - 1e-12))


@pytest.mark.parametrize("shape", SHAPES)
def test_randconv_keeps_each_image_s_mean_and_deviation(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=seeded()) + 2
    changed = RandConv().augment(images, generator=seeded(1))
    torch.testing.assert_close(changed.flatten(1).mean(1), images.flatten(1).mean(1))
    torch.testing.assert_close(changed.flatten(1).std(1), images.flatten(1).std(1))
    assert not torch.allclose(changed, images, rtol=0.01)


def test_randconv_samples_sizes_and_entries_for_each_sample() -> None:
    images = torch.rand(400, 2, 9, 9, generator=seeded())
    weights = RandConv()(images, generator=seeded()).params["weights"]
    assert weights.shape == (400, 2, 2, 7, 7)
    entries = [int((one != 0).sum()) for one in weights]
    assert {*entries} == {4 * size**2 for size in (1, 3, 5, 7)}
    for size in (1, 3, 5, 7):
        own = weights[torch.tensor(entries) == 4 * size**2]
        assert len(own) == pytest.approx(100, abs=30)
        inside = slice(3 - size // 2, 4 + size // 2)
        assert float(own[..., inside, inside].square().sum((2, 3, 4)).mean()) == pytest.approx(1, abs=0.2)
    assert len(weights.flatten(1).unique(dim=0)) == 400
    assert RandConv((3,))(images, generator=seeded()).params["weights"].shape == (400, 2, 2, 3, 3)


def test_fields_are_smooth_and_span_0_to_1_at_any_size() -> None:
    points = torch.randn(5, 1, 10, 10, generator=seeded())
    fields = smooth_field(points, (60, 90))
    assert fields.shape == (5, 1, 60, 90)
    assert torch.equal(fields.amin((1, 2, 3)), torch.zeros(5))
    assert torch.equal(fields.amax((1, 2, 3)), torch.ones(5))
    bends = [fields.diff(dim=axis).diff(dim=axis).abs().max() for axis in (2, 3)]
    assert max(bends) < 0.05
    finer = smooth_field(points, (180, 270))[..., 1::3, 1::3]  # at the same places, but of another range
    finer = finer - finer.amin((1, 2, 3), keepdim=True)
    torch.testing.assert_close(finer / finer.amax((1, 2, 3), keepdim=True), fields)
    assert len({float(one[0, 0, 0]) for one in fields}) == 5


def test_ipa_is_gin_where_both_networks_are_one() -> None:
    images = torch.rand(3, 1, 12, 12, generator=seeded())
    change = IPA()(images, generator=seeded(1))
    params = {**change.params, "second": change.params["first"]}
    alone = GIN().transform(images, **change.params["first"])
    torch.testing.assert_close(change.transform.transform(images, **params), alone)
    assert not torch.allclose(change.apply(images), alone)


@pytest.mark.parametrize("start", [1, 2])
def test_moments_are_restored_over_the_axes_from_start_on(start: int) -> None:
    images, changed = torch.randn(3, 2, 9, generator=seeded()) + 4, torch.rand(3, 2, 9, generator=seeded(1))
    result = with_moments_of(images, changed, start).flatten(start)
    torch.testing.assert_close(result.mean(start), images.flatten(start).mean(start))
    torch.testing.assert_close(result.std(start), images.flatten(start).std(start))


@pytest.mark.parametrize("shape", SHAPES)
def test_gin_keeps_each_image_s_norm(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=seeded()) + 2
    changed = GIN().augment(images, generator=seeded(1))
    torch.testing.assert_close(changed.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1))
    assert not torch.allclose(changed, images, rtol=0.01)


@EVERY_TRANSFORM
@pytest.mark.parametrize("shape", [(1, 12, 15), (3, 6, 8, 9)])
def test_a_single_image_is_a_batch_of_one(transform: LatentTransform, shape: tuple[int, ...]) -> None:
    image = torch.rand(shape, generator=seeded())
    alone = transform.augment(image, generator=seeded(1), batched=False)
    assert torch.equal(alone, transform.augment(image.unsqueeze(0), generator=seeded(1)).squeeze(0))


@EVERY_TRANSFORM
def test_a_sample_depends_on_itself_alone(transform: LatentTransform) -> None:
    images = torch.rand(4, 1, 12, 12, generator=seeded())
    change = transform(images, generator=seeded(1))
    others = images.clone()
    others[1:] = 9
    torch.testing.assert_close(change.apply(others)[0], change.apply(images)[0])
    assert not torch.allclose(change.apply(images)[0], change.apply(images.flip(0))[0])


def test_kernels_are_sampled_for_each_layer_from_the_sizes_given() -> None:
    seen = set()
    for seed in range(40):
        params = GIN(kernel_sizes=(1, 3))(torch.rand(2, 1, 6, 6), generator=seeded(seed)).params
        seen.add(tuple(weight.shape[-1] for weight in params["weights"]))
        assert [tuple(weight.shape[:3]) for weight in params["weights"]] == [(2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 1, 2)]
    assert len(seen) > 10  # of 16


def test_strength_is_a_number_or_a_pair() -> None:
    images = torch.rand(200, 1, 4, 4, generator=seeded())
    assert GIN(strength=0.25)(images, generator=seeded()).params["strength"].tolist() == [0.25] * 200
    sampled = GIN(strength=(0.2, 0.4))(images, generator=seeded()).params["strength"]
    assert len(sampled.unique()) > 190
    assert 0.2 <= float(sampled.min()) < 0.22 < 0.38 < float(sampled.max()) <= 0.4


@EVERY_TRANSFORM
def test_half_precision_is_filtered_in_float32(transform: LatentTransform) -> None:
    images = (torch.rand(2, 1, 32, 32, generator=seeded()) * 200).half()
    change = transform(images, generator=seeded(1))
    changed = change.apply(images)
    assert changed.dtype == torch.float16
    assert changed.isfinite().all()  # though the square of the norm is not, in float16
    assert torch.equal(changed, change.apply(images.float()).half())


@EVERY_TRANSFORM
@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (2, 1, 1, 1), (2, 1, 1)])
def test_small_and_empty_batches(transform: LatentTransform, shape: tuple[int, ...]) -> None:
    changed = transform.augment(torch.ones(shape), generator=seeded())
    assert changed.shape == shape
    assert changed.isfinite().all()


@EVERY_TRANSFORM
def test_an_image_of_zeros_stays_one_and_has_a_gradient(transform: LatentTransform) -> None:
    images = torch.zeros(2, 1, 8, 8, requires_grad=True)
    changed = transform.augment(images, generator=seeded())
    assert not changed.any()
    (gradient,) = torch.autograd.grad(changed.sum(), images)
    assert gradient.isfinite().all()


def test_randconv_leaves_a_constant_image_as_it_is() -> None:
    images = torch.full((3, 2, 8, 8), 7.0, requires_grad=True)
    changed = RandConv().augment(images, generator=seeded())
    torch.testing.assert_close(changed, images)
    assert torch.autograd.grad(changed.sum(), images)[0].isfinite().all()


@EVERY_TRANSFORM
def test_given_its_params_a_change_is_one_graph(transform: LatentTransform) -> None:
    images = torch.rand(2, 1, 10, 12, generator=seeded())
    change = transform(images, generator=seeded(1))
    compiled = torch.compile(transform.transform, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, **change.params), change.apply(images))


@EVERY_TRANSFORM
def test_a_chance_of_0_and_eval_mode_leave_images_alone(transform: LatentTransform) -> None:
    images = torch.rand(2, 1, 8, 8, generator=seeded())
    assert type(transform)(p=0).augment(images) is images
    assert type(transform)().eval().augment(images) is images
    assert not torch.equal(transform.augment(images, generator=seeded()), images)


@EVERY_TRANSFORM
def test_a_gpu_need_not_be_waited_for(transform: LatentTransform) -> None:
    images = torch.empty(3, 2, 9, 9, device="meta")  # without numbers: whatever would ask for one raises
    assert transform(images, generator=seeded()).apply(images).device.type == "meta"


def test_a_network_that_cancels_the_image_gives_no_nan() -> None:
    change = GIN(layers=1, strength=1.0)(torch.ones(1, 1, 4), generator=seeded())
    change.params["weights"], change.params["shifts"] = [torch.zeros(1, 1, 1, 1)], [torch.zeros(1, 1)]
    assert not change.apply(torch.ones(1, 1, 4)).any()


def test_convolutions_keep_samples_apart() -> None:
    images, weight = torch.randn(3, 2, 7, 5, generator=seeded()), torch.randn(3, 4, 2, 3, 3, generator=seeded(1))
    result = convolved(images, weight)
    for i in range(3):
        torch.testing.assert_close(result[i : i + 1], F.conv2d(images[i : i + 1], weight[i], padding=1))


def test_options_and_images_out_of_range_are_refused() -> None:
    for name in ("layers", "channels"):
        with pytest.raises(ValueError, match=rf"{name} must be a whole number, 1 or more; got 0"):
            GIN(**{name: 0})
    with pytest.raises(ValueError, match=r"intervals must be a whole number, 1 or more; got 2.5"):
        IPA(intervals=2.5)  # type: ignore[arg-type]
    for kind in (RandConv, GIN, IPA):
        with pytest.raises(TypeError, match=r"kernel_sizes must be a list of odd numbers, such as \(1, 3\); got 5"):
            kind(kernel_sizes=5)
        for sizes in ((), (2,), (0, 1), (-1,), (3.0,), ("3",), (True,)):
            with pytest.raises(ValueError, match=r"kernel_sizes must be odd numbers, such as \(1, 3\); got"):
                kind(kernel_sizes=sizes)
        with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]; got 3"):
            kind(strength=3)
        shape = r"\(1, 1, 2, 2, 2, 2\)"
        with pytest.raises(
            ValueError, match=rf"{kind.__name__} needs images of one to three spatial axes; got shape {shape}"
        ):
            kind()(torch.ones(1, 1, 2, 2, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "transform", [GIN(), IPA(), RandConv(), StrongIntensity()], ids=lambda transform: type(transform).__name__
)
def test_autocast_changes_no_number_of_images_of_any_scale(transform: LatentTransform, dtype: torch.dtype) -> None:
    for scale in (1.0, 255.0, 1000.0):
        images = scale * torch.rand(2, 1, 24, 20, generator=seeded())
        for seed in range(5):
            expected = transform.augment(images, generator=seeded(seed))
            with torch.autocast("cpu", dtype):
                found = transform.augment(images, generator=seeded(seed))
            assert torch.equal(found, expected)
