"""Overlap and surface distances, against counts and slow loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cardiac.data.preprocess import Labels
from cardiac.data.readers import Frame
from study.run.metrics import (
    BINS,
    calibration_error,
    dice,
    evaluate,
    expected_dice,
    frame_scores,
    further_scores,
    logits_of,
    segment,
    surface_distances,
)


def frame_of(
    labels: Labels,
    *,
    structures: tuple[str, ...] = ("LV", "MYO", "RV"),
    patient: str = "007",
    phase: str = "ED",
    cropped: dict[str, int] | None = None,
    group: dict[str, str] | None = None,
) -> Frame:
    return Frame(
        patient=patient,
        phase=phase,
        image=np.zeros(labels.shape, np.float32),
        labels=labels,
        spacing=(10.0, 1.36719, 1.36719),
        structures=structures,
        group=group or {},
        cropped=cropped or {},
    )


def test_dice_equals_a_count_voxel_by_voxel() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.integers(0, 4, (3, 5, 6)), random.integers(0, 4, (3, 5, 6))
    for value in (1, 2, 3):
        both = mine = their = 0
        for index in np.ndindex(ours.shape):
            mine += ours[index] == value
            their += theirs[index] == value
            both += ours[index] == value and theirs[index] == value
        assert dice(torch.as_tensor(ours), torch.as_tensor(theirs), value) == pytest.approx(2 * both / (mine + their))


def test_dice_is_taken_over_the_volume_not_averaged_over_slices() -> None:
    ours, theirs = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.uint8)
    ours[0], theirs[0] = 1, 1
    theirs[1, 0, 0] = 1
    assert dice(ours, theirs, 1) == pytest.approx(2 * 16 / (16 + 17))


def test_a_structure_missing_on_one_side_scores_zero_and_on_both_sides_nothing() -> None:
    empty, full = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert dice(empty, full, 1) == 0
    assert dice(full, empty, 1) == 0
    assert math.isnan(dice(empty, empty, 1))


def volume_of(*voxels: Any, shape: tuple[int, ...] = (3, 5, 6)) -> Tensor:
    """A label map that is 1 at the given places."""
    volume = torch.zeros(shape, dtype=torch.uint8)
    for place in voxels:
        volume[place] = 1
    return volume


@pytest.mark.parametrize(("place", "distance"), [((2, 0, 0), 20.0), ((0, 3, 0), 6.0), ((0, 0, 5), 7.5)])
def test_distances_are_in_millimetres_along_each_axis(place: tuple[int, int, int], distance: float) -> None:
    spacing = (10.0, 2.0, 1.5)
    assert surface_distances(volume_of(place), volume_of((0, 0, 0)), 1, spacing) == pytest.approx((distance, distance))


def test_distances_of_a_case_worked_out_by_hand() -> None:
    # From ours to theirs 0 and d, from theirs to ours 0; the 95th percentile of 0 and d lies at 0.95 d.
    d = math.sqrt((1 * 10) ** 2 + (3 * 2) ** 2 + (4 * 1) ** 2)
    ours, theirs = volume_of((0, 0, 0), (1, 3, 4)), volume_of((0, 0, 0))
    for pair in ((ours, theirs), (theirs, ours)):
        assert surface_distances(*pair, 1, (10.0, 2.0, 1.0)) == pytest.approx((0.95 * d, d / 3))


def test_only_the_surface_counts() -> None:
    # A block of 3 x 3 x 3 without the voxel in its middle has the same outer surface, and six voxels around the hole.
    block = volume_of((slice(1, 4), slice(1, 4), slice(1, 4)), shape=(5, 5, 5))
    hollow = block.clone()
    hollow[2, 2, 2] = 0
    assert surface_distances(hollow, block, 1, (1.0, 1.0, 1.0)) == (0, 0)
    filled = volume_of((slice(0, 5), slice(0, 5), slice(0, 5)), shape=(5, 5, 5))
    # The larger block's surface is its outer layer: 6 x 9 voxels at 1, 12 x 3 at sqrt(2), 8 at sqrt(3); back 26 at 1.
    hd95, assd = surface_distances(filled, block, 1, (1.0, 1.0, 1.0))
    assert hd95 == pytest.approx(math.sqrt(3))
    assert assd == pytest.approx((54 + 36 * math.sqrt(2) + 8 * math.sqrt(3) + 26) / (98 + 26))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.sampled_from([0.02, 0.3, 0.9]))
def test_distances_agree_with_a_slow_loop(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    spacing = (8.0, 1.5, 1.25)
    volumes = [torch.as_tensor(random.random((3, 6, 7)) < share).to(torch.uint8) for _ in range(2)]

    def surface(volume: Tensor) -> Iterator[npt.NDArray[np.float64]]:
        padded = np.pad(volume.numpy(), 1)
        for place in np.argwhere(padded):
            around = [padded[tuple(place + step)] for step in np.vstack([np.eye(3, dtype=int), -np.eye(3, dtype=int)])]
            if not all(around):
                yield (place - 1) * spacing

    points = [list(surface(volume)) for volume in volumes]
    if not all(points):
        assert surface_distances(*volumes, 1, spacing) is None
        return
    apart = np.array([[np.linalg.norm(a - b) for b in points[1]] for a in points[0]])
    directed = apart.min(1), apart.min(0)
    expected = max(np.percentile(d, 95) for d in directed), np.concatenate(directed).mean()
    assert surface_distances(*volumes, 1, spacing) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")  # MONAI 1.6 warns of itself
def test_distances_agree_with_monai() -> None:
    metrics = pytest.importorskip("monai.metrics")
    spacing = (10.0, 1.4, 1.2)
    grid = np.indices((6, 24, 26)) - np.array([2.5, 12, 12]).reshape(3, 1, 1, 1)
    ours, theirs = (
        torch.as_tensor(
            ((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2 / np.reshape(axes, (3, 1, 1, 1)) ** 2).sum(0) < 1
        )
        for centre, axes in (((0, 1, 0), (2, 7, 6)), ((0.5, 0, -2), (3, 6, 9)))
    )
    one_hot = [volume[None, None].float() for volume in (ours, theirs)]
    options = {"include_background": True, "spacing": spacing}
    hd95 = metrics.compute_hausdorff_distance(*one_hot, percentile=95, **options)
    assd = metrics.compute_average_surface_distance(*one_hot, symmetric=True, **options)
    found = surface_distances(ours.to(torch.uint8), theirs.to(torch.uint8), 1, spacing)
    assert found == pytest.approx((float(hd95), float(assd)), rel=1e-5)
    assert min(found) > 1


def test_structures_that_a_data_set_does_not_label_are_left_out() -> None:
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, :2], labels[0, 2] = 1, 2
    predicted = torch.full((1, 4, 4), 3)
    found = frame_scores(predicted, frame_of(labels, structures=("LV", "MYO")))
    assert {structure for structure, _ in found} == {"LV", "MYO"}


def test_a_structure_in_neither_volume_is_left_out() -> None:
    labels = np.ones((1, 4, 4), np.uint8)
    found = frame_scores(torch.ones(1, 4, 4), frame_of(labels))
    assert found == {("LV", "dice"): 1, ("LV", "hd95"): 0, ("LV", "assd"): 0, ("LV", "missed"): 0}


@pytest.mark.parametrize(("predicted", "labelled"), [(0, 1), (1, 0)])
def test_a_structure_in_one_volume_only_is_missed_and_has_no_distance(predicted: int, labelled: int) -> None:
    labels = np.full((1, 4, 4), labelled, np.uint8)
    found = frame_scores(torch.full((1, 4, 4), predicted), frame_of(labels))
    assert found == {("LV", "dice"): 0, ("LV", "missed"): 1}


class Echo(torch.nn.Module):
    """Calls voxels above a half 1, every other one 0; so does its refinement."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([0.5 - images, images - 0.5], dim=1)

    def refine(self, logits: Tensor) -> Tensor:
        return logits


def echoed(image: np.ndarray, **about: Any) -> Frame:
    """A frame in which the left half is LV, and whose image is what `Echo` will find."""
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[..., :2] = 1
    frame = frame_of(labels, **about)
    frame.image[:] = image
    return frame


def evaluated(frames: list[Frame]) -> dict[tuple[str, str], float]:
    scores = evaluate(Echo(), {"M&Ms": frames}, torch.device("cpu"), method="standard", draw=0)
    return {(s.column, s.metric): s.value for s in scores if s.stage == "FTN"}


def test_repetitions_of_a_frame_are_averaged_and_distances_leave_out_the_missed() -> None:
    half = np.array([[1, 1, 0, 0]] * 4, np.float32)
    found = evaluated([echoed(half), echoed(half), echoed(np.zeros((4, 4)))])
    assert found == {
        ("M&Ms", "dice"): pytest.approx(2 / 3),
        ("M&Ms", "hd95"): 0,
        ("M&Ms", "assd"): 0,
        ("M&Ms", "missed"): pytest.approx(1 / 3),
    }


def test_vendors_and_centres_are_scored_apart() -> None:
    half = np.array([[1, 1, 0, 0]] * 4, np.float32)
    frames = [
        echoed(half, patient="X", group={"vendor": "A", "centre": "1"}),
        echoed(half.T.copy(), patient="Y", group={"vendor": "A", "centre": "6"}),
    ]
    scores = evaluate(Echo(), {"M&Ms": frames}, torch.device("cpu"), method="standard", draw=0)
    patients = {column: {s.patient for s in scores if s.column == column} for column in {s.column for s in scores}}
    assert patients == {
        "M&Ms": {"X", "Y"},
        "M&Ms/A": {"X", "Y"},
        "M&Ms/centre 1": {"X"},
        "M&Ms/centre 6": {"Y"},
    }


def test_a_vendor_or_centre_that_is_not_known_gets_no_column() -> None:
    half = np.array([[1, 1, 0, 0]] * 4, np.float32)
    found = evaluated([echoed(half, group={"vendor": "B", "centre": "", "sex": "F"})])
    assert {column for column, _ in found} == {"M&Ms", "M&Ms/B"}


class Bright(torch.nn.Module):
    """Calls bright voxels 1; its refinement calls everything 2."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([1 - images, images, torch.full_like(images, -1)], dim=1)

    def refine(self, logits: Tensor) -> Tensor:
        return torch.stack([torch.full_like(logits[:, 0], value) for value in (0, 0, 1)], dim=1)


def test_all_around_what_a_model_sees_is_background() -> None:
    frame = frame_of(np.zeros((2, 7, 8), np.uint8))
    frame.image[:, 2, 2:] = 1
    stages = segment(Bright(), frame, torch.device("cpu"), side=4)
    expected = torch.zeros(2, 7, 8, dtype=torch.long)
    expected[:, 2, 2:6] = 1
    assert torch.equal(stages["FTN"], expected)
    assert stages["FTN+STN"].sum() == 2 * 2 * 4 * 4
    assert stages["FTN+STN"][:, 1:5, 2:6].all()


def test_the_calibration_error_is_that_of_a_loop_over_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(2, 9, 7, generator=generator)
    inside = torch.rand(2, 9, 7, generator=generator) < probability**2
    sure, right = torch.maximum(probability, 1 - probability), (probability >= 0.5) == inside
    expected = 0.0
    for number in range(BINS):
        chosen = (sure >= number / BINS) & (sure < (number + 1) / BINS)
        if chosen.any():
            expected += chosen.sum().item() * abs(right[chosen].float().mean() - sure[chosen].mean()).item()
    assert calibration_error(probability, inside) == pytest.approx(expected / probability.numel(), abs=1e-5)


def test_the_expected_dice_is_the_dice_of_what_is_certain() -> None:
    predicted = torch.tensor([True, True, False, True])
    assert expected_dice(predicted.float(), predicted) == 1
    assert expected_dice(torch.tensor([0.6, 0.8, 0.4, 0.7]), predicted) == pytest.approx(2 * 2.1 / (2.5 + 3))
    assert expected_dice(torch.zeros(3), torch.zeros(3, dtype=torch.bool)) == 0


def test_an_image_of_any_size_is_seen_whole() -> None:
    class Strict(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape[2] % 32 == images.shape[3] % 32 == 0
            return torch.cat([1 - images, images], 1)

    image = torch.rand(1, 33, 70).numpy()
    frame = Frame("A", "", image, np.zeros((1, 33, 70), np.uint8), (1.0, 1.0, 1.0))
    (logits,) = logits_of(Strict(), frame, torch.device("cpu"), stages=("Unet",)).values()
    low, high = image.min(), image.max()
    np.testing.assert_allclose(logits[0, 1], (image[0] - low) / (high - low), atol=1e-6)


def test_failures_and_calibration_are_of_the_centre_that_was_seen() -> None:
    labels = np.zeros((1, 8, 8), np.uint8)
    labels[0, 2:6, 2:4] = 1
    logits = torch.full((1, 4, 4, 4), -30.0)
    logits[0, 0, :, 2:] = logits[0, 1, :, :2] = 30.0  # sure, and right
    frame = frame_of(labels)
    found = further_scores({("LV", "dice"): 1.0, ("LV", "hd95"): 0.0, ("MYO", "dice"): 0.05}, logits, frame)
    assert found["LV", "failed"] == 0
    assert found["MYO", "failed"] == 1
    assert found["LV", "ece"] == pytest.approx(0, abs=1e-6)
    assert found["LV", "confidence"] == pytest.approx(1)
    assert found["MYO", "confidence"] == 0
    assert {metric for _, metric in found} == {"failed", "ece", "confidence"}
