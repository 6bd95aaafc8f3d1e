"""What modules keep on themselves, and what a pass changes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from latentaug.tracing.attributes import attributes_of, changed_attributes


class Keeping(nn.Module):
    """Keeps a tensor, containers and numbers beside weights and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm2d(2)
        self.tensor, self.features, self.named = torch.zeros(2), [torch.zeros(1)], {"a": torch.zeros(1)}
        self.count, self.pair = 0, (1, "x")


def changed_by(change: Callable[[Any], object]) -> frozenset[tuple[str, str]]:
    model = nn.Sequential(Keeping())
    before = attributes_of(model)
    change(model[0])
    return changed_attributes(before, attributes_of(model))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: setattr(m, "tensor", torch.zeros(2)), "tensor"),
        (lambda m: m.tensor.add_(1), "tensor"),
        (lambda m: m.features.append(torch.zeros(1)), "features"),
        (lambda m: m.features.__setitem__(0, torch.zeros(1)), "features"),
        (lambda m: m.features[0].add_(1), "features"),
        (lambda m: m.features.clear(), "features"),
        (lambda m: m.named.update(a=torch.zeros(1)), "named"),
        (lambda m: m.named.update(b=None), "named"),
        (lambda m: setattr(m, "count", 1), "count"),
        (lambda m: setattr(m, "new", None), "new"),
    ],
)
def test_what_is_set_filled_or_changed_is_named(change: Callable[[Any], object], name: str) -> None:
    assert changed_by(change) == {("0", name)}


def test_weights_buffers_submodules_and_modes_are_none_of_it() -> None:
    def change(model: Any) -> None:
        model.inner = nn.BatchNorm2d(3)
        model.eval()
        model.register_forward_hook(lambda *_: None)
        model.inner.running_mean.add_(1)
        model.inner.weight.data.add_(1)

    assert not {key for key in changed_by(change) if key[0] == "0"}


def test_what_stays_is_not_named() -> None:
    assert not changed_by(lambda model: (model.tensor + 1, setattr(model, "pair", model.pair)))
