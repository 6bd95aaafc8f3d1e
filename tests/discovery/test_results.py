"""Which tensors of an output are predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentaug.discovery.results import predictions_in

A, B, C = torch.zeros(1), torch.zeros(2), torch.zeros(3)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (A, [A]),
        ([A, B], [A, B]),
        ({"out": A, "aux": B, "features": C}, [A, B]),
        ({"features": C, "logits": [A, B]}, [A, B]),
        ({"masks": A, "classes": B}, [A, B]),
    ],
    ids=["tensor", "list", "torchvision", "logits", "other names"],
)
def test_what_is_named_counts_alone_and_else_all_does(output: Any, expected: list[torch.Tensor]) -> None:
    found = list(predictions_in(output))
    assert len(found) == len(expected)
    assert all(a is b for a, b in zip(found, expected, strict=True))
