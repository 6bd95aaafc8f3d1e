"""Changes that version counters don't show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from latentaug.tracing.fingerprint import ENTRIES, Fingerprint

CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda t: t.add_(1),
    "by data": lambda t: t.data.mul_(3),
    "another storage": lambda t: setattr(t, "data", t.data + 1),
    "a view": lambda t: t.detach().view(-1).add_(1),
    "another type": lambda t: setattr(t, "data", t.data.double()),
    "by numpy": lambda t: t.detach().numpy().__iadd__(1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", [(), (3,), (40, 50)])
def test_changed_tensors_are_told(change: str, shape: tuple[int, ...]) -> None:
    tensors = [torch.randn(5), torch.ones(shape), torch.randn(7)]
    before = Fingerprint(tensors)
    assert before.changed() == []
    CHANGES[change](tensors[1])
    changed = before.changed()
    assert any(one is tensors[1] for one in changed)
    if change != "another type":
        assert len(changed) == 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((4,), float("nan")),
        torch.randn(2, 3, 40, 40).contiguous(memory_format=torch.channels_last),
        torch.randn(50, 60).t(),
        torch.randn(1, 3).expand(500, 3),
        torch.randn(400, 3)[::2],
        torch.zeros(0),
        torch.randn(300, dtype=torch.complex64),
        torch.randn(300).bfloat16(),
        torch.arange(300),
        torch.ones(300, dtype=torch.bool),
        torch.eye(3).to_sparse(),
        nn.Parameter(torch.randn(300)),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)} {tensor.layout}",
)
def test_any_tensor_is_as_it_was(tensor: Tensor) -> None:
    assert Fingerprint([tensor]).changed() == []


def test_few_entries_of_large_tensors_and_all_of_small_ones_are_looked_at() -> None:
    large, small = torch.zeros(ENTRIES * 100), torch.zeros(ENTRIES)
    before = Fingerprint([large, small])
    large.data[1] = 1
    assert before.changed() == []
    small.data[1] = 1
    assert [one is small for one in before.changed()] == [True]
    assert Fingerprint([large], 2**20).changed() == []


def test_nothing_is_said_of_accelerators_where_there_are_none() -> None:
    assert Fingerprint([torch.zeros(3)]).verdict()() is False


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (3, 1, 48, 80), (2, 5, 63, 65)])
def test_every_column_is_looked_at(shape: tuple[int, ...]) -> None:
    images = torch.zeros(shape)
    images[..., 6:-6, 6:-6] = torch.rand(images[..., 6:-6, 6:-6].shape) + 0.1  # as scans with a black border
    before = Fingerprint([images])
    images.data.mul_(2)
    assert [one is images for one in before.changed()] == [True]
