"""A tap tells transforms and changes from what merely can be called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentaug import GIN, DropBlock, LatentMask, ManifoldMixup, MixStyle, OneOf, RandomChannelMask
from latentaug.tap.sampling import Sampled, Sampler


@pytest.mark.parametrize(
    "transform", [MixStyle(), DropBlock(), ManifoldMixup(), GIN(), RandomChannelMask(), OneOf([MixStyle()])], ids=repr
)
def test_transforms_are_samplers_and_what_they_sample_are_changes(transform: nn.Module) -> None:
    change = transform(torch.randn(2, 3, 4, 4))
    assert isinstance(transform, Sampler)
    assert not isinstance(transform, Sampled)
    assert isinstance(change, Sampled)
    assert not isinstance(change, Sampler)


def test_other_callables_are_neither() -> None:
    for other in (nn.ReLU(), torch.relu, LatentMask(torch.ones(1)).apply, torch.ones(1), None, "encoder"):
        assert not isinstance(other, Sampler | Sampled)
