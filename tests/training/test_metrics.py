"""Scores, against counting pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from latentaug.training.metrics import Overlap
from tests.support.synchronisation import NoSync
from tests.support.tiny_training import (
    tiny_coop,
    tiny_trainer,
)


def overlap_by_counting(predicted: torch.Tensor, labels: torch.Tensor, index: int, ignore: int) -> tuple[float, float]:
    both = either = total = 0
    for one, other in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if other == ignore:
            continue
        both += one == index and other == index
        either += one == index or other == index
        total += (one == index) + (other == index)
    return (both / either, 2 * both / total) if either else (float("nan"), float("nan"))


@pytest.mark.parametrize("num_classes", [1, 4])
def test_evaluate_scores_both_outputs_as_counting_pixels_does(num_classes: int) -> None:
    coop = tiny_coop(num_classes, ignore_index=255)
    batches = [(torch.rand(n, 1, 8, 8), torch.randint(min(num_classes, 2) + 1, (n, 1, 8, 8))) for n in (3, 2)]
    for _, labels in batches:
        labels[labels == max(num_classes, 2)] = 1
        labels[..., :3] = 255
    trainer = tiny_trainer(coop)
    scores = trainer.evaluate(batches)

    labels = torch.cat([labels.squeeze(1) for _, labels in batches])
    classes = [1] if num_classes == 1 else list(range(num_classes))
    for refine, prefix in ((0, ""), (1, "refined_")):
        predicted = torch.cat([coop.predict(images, refine=refine) for images, _ in batches])
        expected = [overlap_by_counting(predicted, labels, index, 255) for index in classes]
        for index, (iou, dice) in zip(classes, expected, strict=True):
            assert scores[f"{prefix}iou_{index}"] == pytest.approx(iou, nan_ok=True)
            assert scores[f"{prefix}dice_{index}"] == pytest.approx(dice, nan_ok=True)
        present = [pair for pair in expected if pair[0] == pair[0]]
        for name, values in zip(("iou", "dice"), zip(*present, strict=True), strict=True):
            assert scores[f"{prefix}{name}"] == pytest.approx(sum(values) / len(values))
    assert f"iou_{classes[-1] + 1}" not in scores
    with torch.no_grad():
        means = sum(len(images) * float(coop.eval()(images, labels).loss) for images, labels in batches) / 5
    assert scores["loss"] == pytest.approx(means)


def test_evaluation_counts_without_a_wait_for_the_device() -> None:
    overlap = Overlap(num_classes=3, ignore_index=255)
    with NoSync():
        overlap.add(torch.rand(2, 3, 4, 4), torch.randint(3, (2, 4, 4)))
    assert int(overlap.counts.sum()) == 32
