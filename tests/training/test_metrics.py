"""Scores, against counting pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from latentaug.training.metrics import Overlap, RegionOverlap
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.uint8, torch.bool])
def test_labels_are_rounded_and_not_cut_off(dtype: torch.dtype) -> None:
    labels = torch.randint(2, (2, 4, 4))
    given = (labels - 1e-5 if dtype.is_floating_point else labels).to(dtype)
    for overlap, logits, own in (
        (Overlap(2), torch.stack([1.0 - labels, 1.0 * labels], 1), given),
        (RegionOverlap(1), (labels[:, None] - 0.5), given[:, None]),
    ):
        overlap.add(logits, own)
        assert overlap.scores()["dice"] == 1


@pytest.mark.parametrize("ignored", [0, 2])
def test_an_ignored_class_enters_no_mean(ignored: int) -> None:
    coop = tiny_coop(3, ignore_index=ignored)
    with torch.no_grad():
        coop.model.decoder[1].bias[ignored] = 0.3  # so that it is predicted somewhere
    images, labels = torch.rand(4, 1, 8, 8), torch.randint(3, (4, 8, 8))
    scores = tiny_trainer(coop).evaluate([(images, labels)])
    predicted = coop.predict(images, refine=0)
    assert (predicted[labels != ignored] == ignored).any()  # so that it would enter as 0
    counted = [index for index in range(3) if index != ignored]
    expected = [overlap_by_counting(predicted, labels, index, ignored) for index in counted]
    for name, values in zip(("iou", "dice"), zip(*expected, strict=True), strict=True):
        assert scores[name] == pytest.approx(sum(values) / 2)
        assert [key for key in scores if key.startswith(f"{name}_")] == [f"{name}_{index}" for index in counted]


def test_the_score_of_an_ignored_class_cannot_be_monitored() -> None:
    trainer = tiny_trainer(tiny_coop(3, ignore_index=0))
    batches = [(torch.rand(2, 1, 8, 8), torch.randint(3, (2, 8, 8)))]
    with pytest.raises(ValueError, match=r"monitor must be a score of evaluate, one of iou, dice, iou_1.*got 'iou_0'"):
        trainer.fit(batches, batches, epochs=1, monitor="iou_0")


def test_evaluation_counts_without_a_wait_for_the_device() -> None:
    overlap = Overlap(num_classes=3, ignore_index=255)
    with NoSync():
        overlap.add(torch.rand(2, 3, 4, 4), torch.randint(3, (2, 4, 4)))
    assert int(overlap.counts.sum()) == 32


def test_regions_are_scored_as_counting_pixels_of_each_does() -> None:
    generator = torch.Generator().manual_seed(0)
    overlap, logits, labels = RegionOverlap(3, ignore_index=255), list[torch.Tensor](), list[torch.Tensor]()
    for n in (3, 2):
        logits.append(torch.randn(n, 3, 8, 8, generator=generator))
        labels.append(torch.randint(2, (n, 3, 8, 8), generator=generator))
        labels[-1][0, 1, :4] = 255
        with NoSync():
            overlap.add(logits[-1], labels[-1].float())
    scores, predicted, given = overlap.scores(), (torch.cat(logits) > 0).long(), torch.cat(labels)
    expected = [overlap_by_counting(predicted[:, i], given[:, i], 1, 255) for i in range(3)]
    for i, (iou, dice) in enumerate(expected):
        assert scores[f"iou_{i}"] == pytest.approx(iou)
        assert scores[f"dice_{i}"] == pytest.approx(dice)
    assert scores["dice"] == pytest.approx(sum(dice for _, dice in expected) / 3)


def test_a_trainer_fits_scores_and_predicts_regions() -> None:
    images = torch.rand(4, 2, 1, 8, 8)
    batches = list(zip(images, torch.stack([images[:, :, 0] > 0.3, images[:, :, 0] > 0.6], 2), strict=True))
    trainer = tiny_trainer(tiny_coop(2, regions=True))
    trainer.fit(batches, batches, epochs=2, monitor="refined_dice_1")
    assert {"val_dice_0", "val_refined_iou_1"} <= trainer.history[-1].keys()
    predicted = trainer.predict(images[0])
    assert predicted.shape == (2, 2, 8, 8)
    scores = RegionOverlap(2)
    scores.add(trainer.model.eval()(images[0]), batches[0][1])
    assert trainer.evaluate(batches[:1])["dice_0"] == pytest.approx(scores.scores()["dice_0"])
    with pytest.raises(ValueError, match=r"labels must be \(2, 2, 8, 8\).*Labels are 0 and 1 per region"):
        trainer.fit([(images[0], batches[0][1][:, 0])], epochs=3)
