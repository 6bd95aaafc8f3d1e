"""The losses against slow loops, and what each weighs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.augment.masks import TargetedChannelMask
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.objective import (
    HARD,
    WEIGHTS,
    Objective,
    reconstruction_loss,
    segmentation_loss,
)
from latentaug.cooperative.output import CooperativeOutput
from tests.models.segmenters import SkipNet
from tests.support.codes import seeded
from tests.support.cooperation import QUIET, batch, cooperative

# Losses ---------------------------------------------------------------------------------------------------------------


def slow_segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> float:
    terms = []
    for b in range(labels.shape[0]):
        for index in torch.cartesian_prod(*(torch.arange(n) for n in labels.shape[1:])).view(-1, labels.ndim - 1):
            label = labels[(b, *index)].item()
            if label == ignore_index:
                continue
            scores = logits[(b, slice(None), *index)]
            if len(scores) == 1:
                p = 1 / (1 + math.exp(-scores[0].item()))
                terms.append(-math.log(p if label else 1 - p))
            else:
                probabilities = scores.exp() / scores.exp().sum()
                terms.append(-math.log(probabilities[int(label)].item()))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("size", [(7,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("ignore_index", [-100, 0, 255])
def test_segmentation_loss_by_a_slow_loop(size: tuple[int, ...], num_classes: int, ignore_index: int) -> None:
    logits = torch.randn(2, num_classes, *size, dtype=torch.float64)
    labels = torch.randint(max(num_classes, 2), (2, *size))
    labels[0, 0] = ignore_index
    expected = slow_segmentation_loss(logits, labels, ignore_index)
    assert segmentation_loss(logits, labels, ignore_index).item() == pytest.approx(expected, rel=1e-12)
    assert segmentation_loss(logits, labels.unsqueeze(1), ignore_index).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_no_valid_pixel_gives_zero_and_zero_gradients(num_classes: int) -> None:
    logits = torch.randn(2, num_classes, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 4, 4), -100))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.int32])
def test_labels_of_other_types_give_the_same_loss(dtype: torch.dtype) -> None:
    labels = torch.randint(2, (2, 4, 4))
    for num_classes in (1, 2):
        logits = torch.randn(2, num_classes, 4, 4)
        torch.testing.assert_close(segmentation_loss(logits, labels.to(dtype)), segmentation_loss(logits, labels))


def test_half_precision_does_not_overflow() -> None:
    logits = torch.full((4, 2, 128, 128), 4.0, dtype=torch.float16)
    labels = torch.zeros(4, 128, 128, dtype=torch.long)
    assert segmentation_loss(logits, labels).item() == pytest.approx(math.log(2), rel=1e-6)
    images = torch.full((4, 1, 128, 128), 2.0, dtype=torch.float16)
    assert reconstruction_loss(-images, images) == 16


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 4), (1, 4, 4)])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs labels of shape \(2, 4, 4\) .* got"):
        segmentation_loss(torch.zeros(2, 3, 4, 4), torch.zeros(shape, dtype=torch.long))


def test_reconstruction_loss_is_the_mean_square() -> None:
    images, reconstruction = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    expected = sum((a - b) ** 2 for a, b in zip(images.flatten(), reconstruction.flatten(), strict=True)) / 32
    torch.testing.assert_close(reconstruction_loss(reconstruction, images), expected)


@pytest.mark.parametrize("image_range", [(0.0, 255.0), (-1.0, 1.0), (-1024.0, 3071.0), (0.0, 0.5)])
def test_reconstruction_loss_is_that_of_the_same_images_in_0_to_1(image_range: tuple[float, float]) -> None:
    low, high = image_range
    images, reconstruction = (torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=seeded(i)) for i in range(2))
    expected = reconstruction_loss(reconstruction, images)
    found = reconstruction_loss(*(low + (high - low) * one for one in (reconstruction, images)), image_range)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_in_0_to_1_and_without_bounds_the_reconstruction_loss_is_the_plain_mean_to_the_last_bit() -> None:
    images, reconstruction = torch.rand(2, 1, 7, 5, generator=seeded()), torch.rand(2, 1, 7, 5, generator=seeded(1))
    plain = torch.nn.functional.mse_loss(reconstruction, images)
    for image_range in ((0.0, 1.0), (0, 1), (2.0, 3.0), None):
        assert torch.equal(reconstruction_loss(reconstruction, images, image_range), plain)


class Scaled(torch.nn.Module):
    """Works in 0..1 whatever the images' range is."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.span, self.net = low, high - low, SkipNet()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net((images - self.low) / self.span)
        return logits


@pytest.mark.parametrize("image_range", [(0.0, 255.0), (-1.0, 1.0)])
def test_a_step_weighs_the_same_images_alike_whatever_their_range(image_range: tuple[float, float]) -> None:
    low, high = image_range
    images, labels = batch(dtype=torch.float64)

    def output_of(low: float, high: float) -> CooperativeOutput:
        torch.manual_seed(0)
        coop = CooperativeModel(
            Scaled(low, high).double(),
            num_classes=3,
            example=low + (high - low) * images,
            codes="net.bottleneck",
            image_range=(low, high),
        )
        made: CooperativeOutput = coop(low + (high - low) * images, labels, generator=seeded())
        return made

    one, other = output_of(0.0, 1.0), output_of(low, high)
    for name, loss in one.losses.items():
        torch.testing.assert_close(other.losses[name], loss, rtol=1e-6, atol=1e-9)


# Weights --------------------------------------------------------------------------------------------------------------


def test_weights_scale_the_losses_and_the_loss_is_their_sum() -> None:
    coop = cooperative(hard=QUIET, augment=TargetedChannelMask(0.5, 0), dropout=0)
    images, labels = batch()
    plain = coop(images, labels, generator=seeded())
    assert plain.loss.item() == pytest.approx(sum(term.item() for term in plain.losses.values()))
    coop.weights = {**WEIGHTS, "segmentation": 3.0, "hard_image_reconstruction": 0.0}
    weighted = coop(images, labels, generator=seeded())
    for name, term in weighted.losses.items():
        factor = {"segmentation": 3.0, "hard_image_reconstruction": 0.0}.get(name, 1.0)
        torch.testing.assert_close(term, factor * plain.losses[name])


def test_weights_that_are_set_change_those_named_alone_and_losses_made_before_keep_theirs() -> None:
    objective = Objective({"reconstruction": 0.25}, None, -100)
    before = objective.losses()
    objective.weights = {"segmentation": 2}
    objective.weights["segmentation"] = 5  # a copy
    assert objective.weights == {**WEIGHTS, "reconstruction": 0.25, "segmentation": 2.0}
    for losses, expected in ((before, 1.0), (objective.losses(), 2.0)):
        losses.add("segmentation", torch.tensor(1.0))
        assert losses.total == expected


def test_the_losses_on_hard_examples_are_among_those_that_are_weighed() -> None:
    assert set(HARD) == {name for name in WEIGHTS if "hard" in name}


def test_the_default_loss_ignores_the_label_it_is_told_to() -> None:
    logits, labels = torch.randn(2, 3, 8, generator=seeded()), torch.randint(3, (2, 8), generator=seeded())
    labels[0, :4] = 7
    found = Objective(None, None, 7).segmentation(logits, labels)
    assert found.item() == pytest.approx(slow_segmentation_loss(logits, labels, 7), rel=1e-6)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(
        ValueError, match="weights must name losses; there is no total, but segmentation, reconstruction"
    ):
        cooperative(weights={"total": 1.0})


@pytest.mark.parametrize("weight", [-1, math.inf, math.nan])
def test_weights_below_zero_or_without_end_are_refused(weight: float) -> None:
    objective = Objective(None, None, -100)
    with pytest.raises(ValueError, match=r"weights\['segmentation'\] must be finite and 0 or more; got"):
        objective.weights = {"segmentation": weight}
    assert objective.weights == WEIGHTS


@pytest.mark.parametrize("weight", [True, "1", None])
def test_weights_that_are_no_numbers_are_refused(weight: Any) -> None:
    with pytest.raises(TypeError, match=r"weights\['segmentation'\] must be a number; got"):
        Objective({"segmentation": weight}, None, -100)


def test_a_loss_that_cannot_be_called_is_refused() -> None:
    loss: Any = "dice"
    with pytest.raises(TypeError, match=r"loss must be a callable \(logits, labels\) -> scalar; got 'dice'"):
        Objective(None, loss, -100)


@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ((torch.rand(2, 1, 4, 4), torch.rand(1, 1, 4, 4)), ValueError, "images' shape"),
        ((torch.rand(2, 1, 4, 4), None), TypeError, "images"),
        ((torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4), (1, 0)), ValueError, "image_range"),
    ],
    ids=["shape", "none", "range"],
)
def test_a_reconstruction_is_of_the_shape_of_its_images(arguments: Any, kind: type[Exception], named: str) -> None:
    with pytest.raises(kind, match=named):
        reconstruction_loss(*arguments)


def test_a_segmentation_loss_is_of_tensors() -> None:
    with pytest.raises(TypeError, match="logits"):
        segmentation_loss(torch.zeros(1, 2, 4, 4).long(), torch.zeros(1, 4, 4).long())
    with pytest.raises(TypeError, match="labels"):
        segmentation_loss(torch.zeros(1, 2, 4, 4), None)  # type: ignore[arg-type]
