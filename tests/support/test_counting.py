"""What is counted is what is computed, and what is kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.counting import CountOperations, bytes_kept


def test_a_convolution_or_a_matrix_product_more_or_less_is_noticed() -> None:
    conv, line, images = nn.Conv2d(1, 2, 3), nn.Linear(4, 2), torch.randn(1, 1, 8, 8)
    for times in range(3):
        with CountOperations() as operations:
            for _ in range(times):
                conv(images)
        assert operations.count == times
    with CountOperations() as operations:
        line(torch.randn(2, 4))
    assert operations.count == 1
    with CountOperations() as operations:
        images.relu() * 2 + images
    assert operations.count == 0


def test_all_that_is_kept_counts_and_memory_that_is_shared_once() -> None:
    x = torch.randn(8, 16, requires_grad=True)
    size = x.untyped_storage().nbytes()
    assert bytes_kept(lambda: x.sum()) == 0
    assert bytes_kept(lambda: x.square()) == size
    assert bytes_kept(lambda: x.square() + x[:4].square().sum()) == size
    assert bytes_kept(lambda: kept_twice(x)) == 2 * size
    with torch.no_grad():
        assert bytes_kept(lambda: x.square()) == 0


def kept_twice(x: Tensor) -> Tensor:
    return x.square() + (x + 1).square()
