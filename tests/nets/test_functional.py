"""Plain functions, against slow loops."""

from __future__ import annotations

import pytest
import torch

from latentaug.nets.functional import crop, one_hot, resize, to_labels, to_probabilities


def test_crop_cuts_at_the_end_of_each_axis() -> None:
    image = torch.arange(24).view(1, 1, 4, 6)
    assert torch.equal(crop(image, (3, 5)), image[:, :, :3, :5])


def test_probabilities_of_all_classes_sum_to_one_and_those_of_one_logit_are_its_sigmoid() -> None:
    logits = torch.randn(2, 3, 4)
    torch.testing.assert_close(to_probabilities(logits).sum(1), torch.ones(2, 4))
    torch.testing.assert_close(to_probabilities(logits[:, :1]), 1 / (1 + (-logits[:, :1]).exp()))


@pytest.mark.parametrize("num_classes", [1, 2, 4])
@pytest.mark.parametrize("ignore_index", [-100, 0, 1, 255])
def test_one_hot_by_a_slow_loop(num_classes: int, ignore_index: int) -> None:
    labels = torch.randint(max(num_classes, 2), (2, 3, 5))
    labels[0, 0, :2] = ignore_index
    expected = torch.zeros(2, num_classes, 3, 5)
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)):
        label = int(labels[b, i, j])
        if label == ignore_index:
            continue
        if num_classes == 1:
            expected[b, 0, i, j] = label
        else:
            expected[b, label, i, j] = 1
    hot = one_hot(labels, num_classes, ignore_index=ignore_index)
    assert torch.equal(hot, expected)
    assert hot.is_contiguous()


def test_one_hot_takes_any_integer_type_and_gives_any_float_type() -> None:
    labels = torch.tensor([[0, 1]], dtype=torch.uint8)
    hot = one_hot(labels, 2, dtype=torch.float64)
    assert hot.dtype is torch.float64
    assert hot.tolist() == [[[1, 0], [0, 1]]]


def test_resizing_interpolates_and_leaves_what_fits_alone() -> None:
    image = torch.arange(4.0).view(1, 1, 4)
    assert resize(image, (4,)) is image
    torch.testing.assert_close(resize(image, (2,)), torch.tensor([[[0.5, 2.5]]]))
    for size in ((3,), (3, 4), (3, 4, 5)):
        assert resize(torch.rand(2, 1, *(2 for _ in size)), size).shape == (2, 1, *size)


def test_a_label_is_the_most_probable_class_or_whether_one_logit_is_positive() -> None:
    assert to_labels(torch.tensor([[[1.0, -2.0], [0.5, 3.0]]])).tolist() == [[0, 1]]
    assert to_labels(torch.tensor([[[1.0, -2.0, 0.0]]])).tolist() == [[1, 0, 0]]
