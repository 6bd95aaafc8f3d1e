"""Scores over a loader, against losses and overlaps taken batch by batch."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from latentaug.training.evaluation import evaluate, losses_of, overlaps_of, scores_of
from tests.support.tiny_training import squares, tiny_coop

CPU = torch.device("cpu")


def test_losses_are_means_over_samples_and_scores_those_of_all_pixels() -> None:
    coop = tiny_coop().eval()
    batches = list(squares(batch_size=4, shuffle=False))  # of four and of two
    overlaps, total = overlaps_of(coop), 0.0
    with torch.no_grad():
        for images, labels in batches:
            output = coop(images, labels)
            total += len(images) * float(losses_of(output)["loss"])
            for overlap, logits in zip(overlaps, (output.logits, output.refined), strict=True):
                overlap.add(logits, labels)
        found = evaluate(coop, batches, CPU, nullcontext)
    assert found["loss"] == pytest.approx(total / 6, rel=1e-6)
    scores = scores_of(overlaps)
    assert {name: found[name] for name in scores} == pytest.approx(scores, nan_ok=True)
    assert "refined_dice_1" in scores


def test_a_loss_that_is_not_finite_is_named_by_its_batch(caplog: pytest.LogCaptureFixture) -> None:
    coop = tiny_coop()
    batches = list(squares())
    batches[1] = (batches[1][0] * float("nan"), batches[1][1])
    coop._unchecked = False
    with torch.no_grad():
        evaluate(coop, batches, CPU, nullcontext)
    assert "the loss of 1 of 3 batches is infinite or not a number, counted from 0: 1." in caplog.text


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch; got an empty one"):
        evaluate(tiny_coop(), [], CPU, nullcontext)


def test_losses_of_images_of_another_kind_of_tensor_are_plain() -> None:
    class Own(torch.Tensor):
        pass

    images, labels = next(iter(squares()))
    found = losses_of(tiny_coop()(images.as_subclass(Own), labels.as_subclass(Own)))
    assert {type(loss) for loss in found.values()} == {torch.Tensor}
