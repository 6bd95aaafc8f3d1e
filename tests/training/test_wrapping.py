"""The model that is trained is the one that was given, or a wrapped one as soon as there are images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from latentaug.cooperative.model import CooperativeModel
from latentaug.training.finite import FiniteGuard
from latentaug.training.wrapping import Wrapped
from tests.support.tiny_training import TinyNet, squares, tiny_coop


class Holder(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def wrapped(model: nn.Module, num_classes: int | None = None, **options: Any) -> Wrapped:
    return Wrapped(model, num_classes, **({"example": None, "device": None, "batch": None} | options))


def test_a_cooperative_model_is_taken_as_it_is() -> None:
    coop = tiny_coop()
    assert (wrapped(coop).outer, wrapped(coop).built("fit")) == (coop, coop)
    holder = Holder(coop)
    assert (wrapped(holder, 3).outer, wrapped(holder, 3).built("fit")) == (holder, coop)
    with pytest.raises(ValueError, match=r"num_classes=3, as the CooperativeModel has, or None; got 4\."):
        wrapped(coop, 4)


def test_another_model_is_wrapped_by_an_example_or_later() -> None:
    net = TinyNet()
    with pytest.raises(ValueError, match="needs num_classes to wrap a TinyNet; got None"):
        wrapped(net)
    assert wrapped(net, 3, example=torch.rand(1, 1, 8, 8)).built("fit").model is net
    later = wrapped(net, 3)
    with pytest.raises(RuntimeError, match="predict needs the wrapped model, which fit makes from its first batch"):
        later.built("predict")
    state = torch.get_rng_state()
    images = later.first_images(squares())
    assert torch.equal(torch.get_rng_state(), state)
    coop = later.wrap(images)
    assert isinstance(coop, CooperativeModel)
    assert later.outer is later.built("fit") is coop
    assert coop.model is net


def test_loaders_that_have_nothing_or_only_once_cannot_size_heads() -> None:
    later = wrapped(TinyNet(), 3)
    with pytest.raises(ValueError, match="got an empty one"):
        later.first_images([])
    with pytest.raises(ValueError, match="can't size the heads from a generator"):
        later.first_images(iter(squares()))

    class Shared:
        def __init__(self, batches: Any) -> None:
            self.batches = iter(batches)

        def __iter__(self) -> Any:
            return self.batches

    shared = Shared(squares())
    with pytest.raises(ValueError, match="can't size the heads from a generator"):
        later.first_images(shared)
    assert len(list(shared)) == 3


def test_batches_are_checked_but_for_those_that_are_lost() -> None:
    images, labels = torch.rand(2, 1, 8, 8), torch.randint(3, (2, 8, 8)).byte()
    one, guard = wrapped(tiny_coop(), batch=lambda batch: (batch["image"], batch["label"])), FiniteGuard(3)
    batch = one.checked({"image": images, "label": labels}, guard)
    assert (batch.labels.dtype, batch.lost) == (torch.int64, [])
    lost = one.checked({"image": images * math.nan, "label": labels + 7}, guard)
    assert lost.lost == ["images"]
    with pytest.raises(ValueError, match=r"labels must be in 0 … 2"):
        one.checked({"image": images, "label": labels + 7}, guard)


def test_a_cooperative_model_that_was_compiled_as_a_whole_is_known() -> None:
    coop = tiny_coop()
    compiled = wrapped(torch.compile(coop, backend="eager"))
    assert compiled.inner is compiled.outer is coop
