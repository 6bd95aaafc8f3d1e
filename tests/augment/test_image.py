"""GIN against a loop over samples, each filtered by a network of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.image import GIN, convolved
from tests.support.codes import KINDS, Kind, code_of, samples_of, seeded

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def filtered_by_loop(image: Tensor, weights: list[Tensor], shifts: list[Tensor], strength: float) -> Tensor:
    """What becomes of one image [C, *S]."""
    filtered = image
    for layer, (weight, shift) in enumerate(zip(weights, shifts, strict=True)):
        conv, padding = CONV[image.ndim - 1], [size // 2 for size in weight.shape[2:]]
        filtered = conv(filtered.unsqueeze(0), weight, shift, padding=padding).squeeze(0)
        if layer < len(weights) - 1:
            filtered = torch.where(filtered > 0, filtered, 0.01 * filtered)
    mixed = strength * filtered + (1 - strength) * image
    return mixed * (image.square().sum().sqrt() / mixed.square().sum().sqrt())


@EVERY_KIND
@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"layers": 3, "channels": 5, "kernel_sizes": (1, 3, 5)}])
def test_agrees_with_a_loop_in_values_and_gradients(kind: Kind, options: dict[str, object]) -> None:
    code = kind.code().requires_grad_()
    change = GIN(**options)(code, layout=kind.layout, generator=seeded())
    weights, shifts = ([one.double() for one in change.params[name]] for name in ("weights", "shifts"))
    assert len(weights) == len(shifts) == options.get("layers", 4)
    strength = change.params["strength"].tolist()
    rows = []
    for i, channels in enumerate(samples_of(code, kind.layout)):
        own = [weight[i] for weight in weights], [shift[i] for shift in shifts]
        rows.append(list(filtered_by_loop(torch.stack(channels), *own, strength[i])))
    changed, expected = change.apply(code), code_of(rows, code, kind.layout)
    torch.testing.assert_close(changed, expected, rtol=1e-7, atol=1e-7)
    target = kind.code(seed=1)
    gradient, wanted = (torch.autograd.grad((one * target).sum(), code)[0] for one in (changed, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6)


def test_the_loop_tells_networks_and_strengths_apart() -> None:
    image = torch.rand(1, 8, 8, generator=seeded(), dtype=torch.float64)
    weights, shifts = [torch.randn(1, 1, 3, 3, dtype=torch.float64)], [torch.randn(1, dtype=torch.float64)]
    torch.testing.assert_close(filtered_by_loop(image, weights, shifts, 0.0), image)
    assert not torch.allclose(filtered_by_loop(image, weights, shifts, 0.5), image)
    assert not torch.allclose(
        filtered_by_loop(image, [2 * weights[0]], shifts, 0.5), filtered_by_loop(image, weights, shifts, 0.5)
    )


@pytest.mark.parametrize("shape", [(3, 1, 30), (3, 1, 12, 15), (3, 4, 12, 15), (3, 1, 6, 8, 9), (3, 2, 6, 8, 9)])
def test_keeps_each_image_s_norm(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=seeded()) + 2
    changed = GIN().augment(images, generator=seeded(1))
    torch.testing.assert_close(changed.flatten(1).norm(dim=1), images.flatten(1).norm(dim=1))
    assert not torch.allclose(changed, images, rtol=0.01)


@pytest.mark.parametrize("shape", [(1, 12, 15), (3, 6, 8, 9)])
def test_a_single_image_is_a_batch_of_one(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape, generator=seeded())
    alone = GIN().augment(image, generator=seeded(1), batched=False)
    assert torch.equal(alone, GIN().augment(image.unsqueeze(0), generator=seeded(1)).squeeze(0))


def test_a_sample_depends_on_itself_alone() -> None:
    images = torch.rand(4, 1, 12, 12, generator=seeded())
    change = GIN()(images, generator=seeded(1))
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


def test_half_precision_is_filtered_in_float32() -> None:
    images = (torch.rand(2, 1, 32, 32, generator=seeded()) * 200).half()
    change = GIN()(images, generator=seeded(1))
    changed = change.apply(images)
    assert changed.dtype == torch.float16
    assert changed.isfinite().all()  # though the square of the norm is not, in float16
    assert torch.equal(changed, change.apply(images.float()).half())


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (2, 1, 1, 1), (2, 1, 1)])
def test_small_and_empty_batches(shape: tuple[int, ...]) -> None:
    changed = GIN().augment(torch.ones(shape), generator=seeded())
    assert changed.shape == shape
    assert changed.isfinite().all()


def test_an_image_of_zeros_stays_one_and_has_a_gradient() -> None:
    images = torch.zeros(2, 1, 8, 8, requires_grad=True)
    changed = GIN().augment(images, generator=seeded())
    assert not changed.any()
    (gradient,) = torch.autograd.grad(changed.sum(), images)
    assert gradient.isfinite().all()


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
    for sizes in ((), (2,), (0, 1)):
        with pytest.raises(ValueError, match=r"kernel_sizes must be odd numbers, such as \(1, 3\); got"):
            GIN(kernel_sizes=sizes)
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]; got 3"):
        GIN(strength=3)
    with pytest.raises(
        ValueError, match=r"GIN needs images of one to three spatial axes; got shape \(1, 1, 2, 2, 2, 2\)"
    ):
        GIN()(torch.ones(1, 1, 2, 2, 2, 2))
    with pytest.raises(TypeError, match=r"floating-point code; got torch.uint8"):
        GIN().augment(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
