import math

import pytest
import torch

from latentaug.cooperative.objective import reconstruction_loss, segmentation_loss, squeeze_labels


def slow_segmentation_loss(logits, labels, ignore_index):
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
                p = scores.exp() / scores.exp().sum()
                terms.append(-math.log(p[int(label)].item()))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("size", [(7,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("ignore_index", [-100, 0, 255])
def test_segmentation_loss_by_a_slow_loop(size, num_classes, ignore_index):
    logits = torch.randn(2, num_classes, *size, dtype=torch.float64)
    labels = torch.randint(max(num_classes, 2), (2, *size))
    labels[0, 0] = ignore_index
    expected = slow_segmentation_loss(logits, labels, ignore_index)
    assert segmentation_loss(logits, labels, ignore_index).item() == pytest.approx(expected, rel=1e-12)
    assert segmentation_loss(logits, labels.unsqueeze(1), ignore_index).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_no_valid_pixel_gives_zero_and_zero_gradients(num_classes):
    logits = torch.randn(2, num_classes, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 4, 4), -100))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.int32])
def test_label_types(dtype):
    labels = torch.randint(2, (2, 4, 4))
    for num_classes in (1, 2):
        logits = torch.randn(2, num_classes, 4, 4)
        torch.testing.assert_close(segmentation_loss(logits, labels.to(dtype)), segmentation_loss(logits, labels))


def test_half_precision_does_not_overflow():
    logits = torch.full((4, 2, 128, 128), 4.0, dtype=torch.float16)
    labels = torch.zeros(4, 128, 128, dtype=torch.long)
    assert segmentation_loss(logits, labels).item() == pytest.approx(math.log(2), rel=1e-6)
    images = torch.full((4, 1, 128, 128), 2.0, dtype=torch.float16)
    assert reconstruction_loss(-images, images) == 16


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 4), (1, 4, 4)])
def test_labels_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"needs labels of shape \(2, 4, 4\) .* got"):
        segmentation_loss(torch.zeros(2, 3, 4, 4), torch.zeros(shape, dtype=torch.long))


def test_reconstruction_loss_is_the_mean_square():
    images, reconstruction = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    expected = sum((a - b) ** 2 for a, b in zip(images.flatten(), reconstruction.flatten(), strict=True)) / 32
    torch.testing.assert_close(reconstruction_loss(reconstruction, images), expected)


def test_squeeze_labels_takes_the_channel_axis_only():
    assert squeeze_labels(torch.zeros(2, 1, 4, 4), 2).shape == (2, 4, 4)
    assert squeeze_labels(torch.zeros(2, 1, 4), 2).shape == (2, 1, 4)
    assert squeeze_labels(torch.zeros(2, 3, 4, 4), 2).shape == (2, 3, 4, 4)
