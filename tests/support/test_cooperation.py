"""The helpers of the cooperative tests: each notices what it is there to notice."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from latentaug.augment.masks import RandomChannelMask, TargetedChannelMask
from latentaug.layout import CHANNELS_FIRST
from tests.support.codes import seeded
from tests.support.cooperation import (
    WAYS,
    Spy,
    assert_parts_fill_the_same_gradients,
    assert_same_gradients,
    batch,
    code_at,
    cooperative,
    count_saliencies,
    scaled_at,
)


def test_same_gradients_notice_a_difference_and_a_gradient_that_is_missing() -> None:
    ours, expected = nn.Linear(2, 1).double(), nn.Linear(2, 1).double()
    for model in (ours, expected):
        model(torch.ones(1, 2, dtype=torch.float64)).backward()
    assert_same_gradients(ours, expected)
    other = copy.deepcopy(ours)
    assert ours.weight.grad is not None
    other.weight.grad = ours.weight.grad * (1 + 1e-9)
    with pytest.raises(AssertionError, match="weight"):
        assert_same_gradients(other, expected)
    other.bias.grad = other.weight.grad = None
    with pytest.raises(AssertionError, match="weight"):
        assert_same_gradients(ours, other)
    with pytest.raises(AssertionError, match="weight"):
        assert_same_gradients(other, ours)


@pytest.mark.parametrize("way", WAYS)
def test_parts_that_are_weighed_in_another_way_are_noticed(way: str) -> None:
    def heavier(model: nn.Module) -> nn.Module:
        model.get_submodule("").weights = {"reconstruction": 0.5 + 1e-6}  # type: ignore[assignment]
        return WAYS[way](model)

    coop = cooperative(dtype=torch.float64)
    assert_parts_fill_the_same_gradients(coop, WAYS[way])
    coop.zero_grad()
    with pytest.raises(AssertionError, match=r"model\.stem"):
        assert_parts_fill_the_same_gradients(coop, heavier)


def test_models_and_batches_are_the_same_every_time_with_and_without_dropout() -> None:
    one, other = cooperative().state_dict(), cooperative(dropout=0).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(map(torch.equal, batch(), batch()))


def test_codes_are_seen_and_scaled_by_hooks_that_are_gone_afterwards() -> None:
    model, x = nn.Sequential(nn.Identity(), nn.Identity()), torch.ones(2)
    assert torch.equal(code_at(model, "0", x), x)
    assert scaled_at(model, {"0": torch.tensor(2.0), "1": torch.tensor(5.0)}, x).tolist() == [10, 10]
    assert torch.equal(model(x), x)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_spy_masks_as_its_masker_does_and_remembers() -> None:
    code = torch.randn(2, 4, 3, generator=seeded())
    spy = Spy(RandomChannelMask(0.5))
    expected = RandomChannelMask(0.5)(code, layout=CHANNELS_FIRST, generator=seeded(1)).factor
    found = spy(code, layout=CHANNELS_FIRST, generator=seeded(1)).factor
    (call,) = spy.calls
    assert torch.equal(found, expected)
    assert call.code is code
    assert call.factor is found


def test_saliencies_are_counted_by_the_codes_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    coop, (images, labels) = cooperative(augment=TargetedChannelMask(), codes=["down", "bottleneck"]), batch()
    counted = count_saliencies(monkeypatch)
    coop(images, labels)
    assert counted == [1, 2]
    monkeypatch.undo()
    coop(images, labels)
    assert counted == [1, 2]
