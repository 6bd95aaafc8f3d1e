"""Loaders and batches of all kinds, and those that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.tiny_training import (
    same_weights,
    squares,
    tiny_coop,
    tiny_trainer,
    weights_of,
)


def test_any_iterable_is_a_loader_and_a_generator_serves_one_epoch() -> None:
    batches = list(squares())
    tiny_trainer().fit(tuple(batches), epochs=1)
    trainer = tiny_trainer()
    trainer.fit(iter(batches), epochs=1)
    assert trainer.global_step == 3
    with pytest.raises(ValueError, match=r"at least one batch in every epoch.*generator can be read only once"):
        tiny_trainer().fit(iter(batches), epochs=2)


def test_a_loader_need_not_know_its_length() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            return iter(squares().dataset[index] for index in range(6))

    trainer = tiny_trainer()
    trainer.fit(torch.utils.data.DataLoader(Stream(), batch_size=4), epochs=2)
    assert (trainer.epoch, trainer.global_step, trainer.planned_steps) == (2, 4, None)


def test_batch_reads_other_loaders() -> None:
    loader = [{"image": images, "label": labels} for images, labels in squares()]
    trainer = tiny_trainer(batch=lambda batch: (batch["image"], batch["label"]))
    trainer.fit(loader, loader, epochs=1)
    assert trainer.global_step == 3


IMAGES, LABELS = torch.rand(2, 1, 8, 8), torch.randint(3, (2, 8, 8))
BATCHES: dict[str, tuple[Any, type[Exception], str]] = {
    "a dictionary": (
        {"image": IMAGES, "label": LABELS},
        TypeError,
        r"\(images, labels\), two tensors; got a dict with keys \['image', 'label'\].*Pass batch=",
    ),
    "a tensor": (IMAGES, TypeError, r"two tensors; got a Tensor of shape \(2, 1, 8, 8\)"),
    "three parts": ((IMAGES, LABELS, "name"), TypeError, "got a tuple of 3: Tensor, Tensor, str"),
    "arrays": ([IMAGES.numpy(), LABELS.numpy()], TypeError, "got a list of 2: ndarray, ndarray"),
    "labels between classes": (
        (IMAGES, LABELS + 0.5),
        ValueError,
        r"must be whole numbers, class indices; got \d\.5\. Round",
    ),
    "complex labels": ((IMAGES, LABELS + 0j), TypeError, r"class indices; got torch.complex64"),
    "integer images": (
        (IMAGES.byte(), LABELS),
        TypeError,
        r"must be floating point; got torch.uint8\. Scale",
    ),
    "a channel per class": (
        (IMAGES, torch.zeros(2, 3, 8, 8, dtype=torch.long)),
        ValueError,
        r"labels must be \(2, 8, 8\) for images of shape \(2, 1, 8, 8\); got \(2, 3, 8, 8\)",
    ),
    "another size": ((IMAGES, LABELS[:, :4]), ValueError, r"got \(2, 4, 8\)"),
    "another batch": ((IMAGES, LABELS[:1]), ValueError, r"got \(1, 8, 8\)"),
    "images without channels": ((IMAGES[:, 0], LABELS), ValueError, r"for images of shape \(2, 8, 8\)"),
    "too large a label": (
        (IMAGES, torch.full_like(LABELS, 3)),
        ValueError,
        r"labels must be in 0 … 2 or ignore_index=-100; got \[3\]\. Map them to class indices",
    ),
    "a negative label": ((IMAGES, torch.full_like(LABELS, -1)), ValueError, r"got \[-1\]"),
    "unscaled images": ((IMAGES * 255, LABELS), ValueError, r"image_range=\(0, 1\); got values from"),
}


@pytest.mark.parametrize(("batch", "error", "message"), BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_a_batch_that_does_not_fit_is_refused(verb: str, batch: Any, error: type[Exception], message: str) -> None:
    trainer = tiny_trainer()
    before = weights_of(trainer)
    with pytest.raises(error, match=message):
        trainer.fit([batch], epochs=1) if verb == "fit" else trainer.evaluate([batch])
    assert same_weights(before, weights_of(trainer))
    assert trainer.global_step == 0


def test_later_batches_are_checked_too() -> None:
    batches = [(IMAGES, LABELS), (IMAGES, torch.full_like(LABELS, 7))]
    trainer = tiny_trainer()
    with pytest.raises(ValueError, match=r"got \[7\]"):
        trainer.fit(batches, epochs=1)
    assert trainer.global_step == 1


def test_labels_of_one_logit_are_zero_and_one() -> None:
    trainer = tiny_trainer(tiny_coop(num_classes=1))
    with pytest.raises(ValueError, match=r"labels must be in 0 … 1.*got \[2\]"):
        trainer.fit([(IMAGES, torch.full_like(LABELS, 2))], epochs=1)
    trainer.fit([(IMAGES, LABELS > 0)], epochs=1)  # a boolean mask will do


def test_whole_labels_of_any_type_train_alike() -> None:
    losses = []
    for labels in (LABELS, LABELS.float(), LABELS.byte(), LABELS.to(torch.uint16), LABELS[:, None] - 1e-9):
        trainer = tiny_trainer(seed=0)
        torch.manual_seed(0)
        trainer.fit([(IMAGES, labels)], epochs=1)
        losses.append(trainer.history[-1]["loss"])
    assert len(set(losses)) == 1


def test_a_loss_of_the_users_own_gets_labels_in_the_shape_that_the_loader_yields() -> None:
    shapes = []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        shapes.append(labels.shape)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)

    trainer = tiny_trainer(tiny_coop(num_classes=1, loss=loss))
    shapes.clear()
    batches = [(IMAGES, (LABELS > 0).float()[:, None])]
    trainer.fit(batches, batches, epochs=1)
    assert set(shapes) == {(2, 1, 8, 8)}
