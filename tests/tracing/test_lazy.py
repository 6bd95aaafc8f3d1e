"""Lazy modules are as good as others: they make their weights before anything looks at the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from latentaug import CooperativeModel, LatentTap, describe, find_bottleneck, find_codes, find_levels
from latentaug.tracing.lazy import initialise

IMAGES = torch.rand(2, 1, 16, 16)
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": nn.LazyBatchNorm2d,
    "batch, no scale": lambda: nn.LazyBatchNorm2d(affine=False),
    "instance": lambda: nn.LazyInstanceNorm2d(affine=True),
    "instance, with statistics": lambda: nn.LazyInstanceNorm2d(affine=True, track_running_stats=True),
}
LOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "describe": lambda model: describe(model, IMAGES),
    "find_bottleneck": lambda model: find_bottleneck(model, IMAGES),
    "find_codes": lambda model: find_codes(model, IMAGES),
    "find_levels": lambda model: find_levels(model, IMAGES),
    "LatentTap": lambda model: LatentTap(model, example=IMAGES),
    "CooperativeModel": lambda model: CooperativeModel(model, num_classes=2, example=IMAGES),
}


def lazy(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 4, 4), norm, nn.ReLU(), nn.LazyConvTranspose2d(2, 4, 4))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("look", LOOKS)
def test_a_model_that_has_seen_no_batch_yet_can_be_looked_at_and_works_afterwards(look: str, norm: str) -> None:
    model = lazy(NORMS[norm]())
    LOOKS[look](model)
    assert not any(map(is_lazy, model.parameters()))
    assert model(IMAGES).isfinite().all()
    tracked = getattr(model[1], "num_batches_tracked", None)
    assert tracked is None or int(tracked) == norm.startswith("batch")  # the one pass above


def test_weights_are_those_that_the_first_pass_would_have_made() -> None:
    one, other = lazy(nn.Identity()), lazy(nn.Identity())
    torch.manual_seed(0)
    one(IMAGES)
    torch.manual_seed(0)
    initialise(other, (IMAGES,), {})
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_a_model_without_lazy_modules_is_not_called() -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    model = nn.Conv2d(1, 1, 1)
    model.register_forward_pre_hook(never)
    initialise(model, (IMAGES,), {})
