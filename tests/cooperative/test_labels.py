"""Labels of every type, in every shape and a rounding away from whole numbers: the loss is that of what is meant."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.labels import between_classes, of_size, size_of, squeeze_labels, whole_numbers
from latentaug.cooperative.step import cooperative_backward
from tests.support.codes import seeded
from tests.support.cooperation import WAYS, Wrap, batch, cooperative
from tests.support.synchronisation import NoSync

WHOLE = [
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


def test_squeeze_labels_takes_the_channel_axis_only() -> None:
    assert squeeze_labels(torch.zeros(2, 1, 4, 4), 2).shape == (2, 4, 4)
    assert squeeze_labels(torch.zeros(2, 1, 4), 2).shape == (2, 1, 4)
    assert squeeze_labels(torch.zeros(2, 3, 4, 4), 2).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 1, 5, 4)])
def test_the_spatial_size_is_seen_past_the_channel_axis(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(shape)
    assert size_of(labels, 2) == (5, 4)
    assert of_size(labels, 2, (5, 4))
    assert not of_size(labels, 2, (4, 5))
    assert not of_size(labels, 1, (5, 4))


def test_labels_are_rounded_without_a_wait_for_the_device() -> None:
    labels = torch.tensor([0.9999, 1.0001, 1.9999])
    with NoSync():
        rounded = whole_numbers(labels)
    assert rounded.tolist() == [1, 1, 2]


def test_what_is_no_whole_number_is_seen() -> None:
    labels = torch.tensor([0.0, 1.0005, 0.998, 0.5, float("nan"), float("inf")])
    assert between_classes(labels).tolist() == [False, False, True, True, True, True]
    assert not between_classes(torch.arange(3).to(torch.uint16)).any()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", WHOLE, ids=str)
def test_every_type_that_holds_whole_numbers_gives_the_loss_of_the_same_labels(dtype: torch.dtype, first: bool) -> None:
    coop, (images, labels) = cooperative().eval(), batch()
    expected = coop(images, labels).loss
    coop = cooperative().eval()
    if not first:
        coop(images, labels)
    assert torch.equal(coop(images, labels.to(dtype)).loss, expected)


def test_boolean_masks_are_the_labels_of_one_logit() -> None:
    coop, (images, labels) = cooperative(num_classes=1).eval(), batch(num_classes=1)
    assert torch.equal(coop(images, labels.bool()).loss, coop(images, labels).loss)


@pytest.mark.parametrize("error", [-2.33e-10, 1.96e-8, -9e-4, 9e-4])
@pytest.mark.parametrize("first", [True, False])
def test_labels_a_rounding_away_from_classes_are_these_classes_in_any_batch(error: float, first: bool) -> None:
    coop, (images, labels) = cooperative().eval(), batch()
    expected = coop(images, labels).loss
    other = cooperative().eval() if first else coop
    assert torch.equal(other(images, labels.double() * (1 + error / 2)).loss, expected)


@pytest.mark.parametrize("value", [0.5, 1.01, float("nan"), float("inf"), 7.0, -1.0])
def test_other_labels_are_refused_in_later_batches_too(value: float) -> None:
    coop, (images, labels) = cooperative(), batch()
    coop(images, labels)
    wrong = labels.double()
    wrong[-1, -1, -1] = value
    with pytest.raises(ValueError, match=rf"needs labels in 0 … 2 or ignore_index=-100; got {value:g}"):
        coop(images, wrong)


def test_complex_labels_are_refused() -> None:
    coop, (images, labels) = cooperative(), batch()
    with pytest.raises(TypeError, match=r"needs labels that are class indices; got torch\.complex64"):
        coop(images, labels + 0j)


@pytest.mark.parametrize("shape", [(3, 8, 10), (3, 1, 8, 10), (3, 20, 16), (2, 16, 20), (3, 16)])
def test_label_maps_that_are_not_as_large_as_the_images_are_refused(shape: tuple[int, ...]) -> None:
    coop, (images, labels) = cooperative(), batch()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"needs labels \[B, \*S\] .* got \(.*\)\. Pass class indices of the images' size"
        ):
            coop(images, torch.zeros(shape, dtype=torch.long))
        coop(images, labels)


# A loss of the user's own ---------------------------------------------------------------------------------------------


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    """A soft Dice for one logit that is right on [B, 1, *S] and broadcasts, silently, on [B, *S]."""
    p = logits.sigmoid()
    return 1 - (2 * (p * labels).sum() + 1) / (p.sum() + labels.sum() + 1)


OWN: dict[str, Any] = {
    "dice": dice,
    "binary": torch.nn.BCEWithLogitsLoss(),
    "positive weight": torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])),
    "square": lambda logits, labels: F.mse_loss(logits.sigmoid(), labels),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("hard", [HardExamples(noise=0), HardExamples(noise=0, fraction=0.5, scale=0.5)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_loss_of_the_users_own_gets_labels_in_the_users_shape(name: str, hard: HardExamples, way: str) -> None:
    wrap: Wrap = WAYS[way]
    seen = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append((logits.shape, labels.shape))
        found: Tensor = OWN[name](logits, labels)
        return found

    images, labels = batch(num_classes=1)
    given = labels.unsqueeze(1).float()
    coop = cooperative(num_classes=1, loss=loss, hard=hard)
    seen.clear()
    output = cooperative_backward(wrap(coop) if way == "stage by stage" else coop, images, given, generator=seeded())
    assert len(seen) >= 6
    assert all(of_logits == of_labels for of_logits, of_labels in seen)
    expected = OWN[name](output.logits, given)
    torch.testing.assert_close(output.losses["segmentation"], expected)


def test_labels_without_the_axis_of_channels_arrive_without_it() -> None:
    images, labels = batch()
    coop = cooperative(loss=torch.nn.CrossEntropyLoss()).eval()
    output = coop(images, labels)
    torch.testing.assert_close(output.losses["segmentation"], F.cross_entropy(output.logits, labels))


@pytest.mark.parametrize("loss", [torch.nn.CrossEntropyLoss(), functools.partial(F.cross_entropy, reduction="mean")])
def test_a_loss_of_class_indices_only_gets_them_from_floating_point_labels(loss: Any) -> None:
    images, labels = batch()
    coop = cooperative(loss=loss).eval()
    assert torch.equal(coop(images, labels.float()).loss, coop(images, labels).loss)


def test_an_explanation_calls_the_loss_as_a_step_does() -> None:
    images, labels = batch(num_classes=1)
    shapes = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        shapes.append(labels.shape)
        return dice(logits, labels)

    coop = cooperative(num_classes=1, loss=loss)
    shapes.clear()
    coop.explain(images, labels.unsqueeze(1))
    assert set(shapes) == {(3, 1, 16, 20)}
