"""Context managers that leave no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from latentaug.tracing.isolation import (
    borrowed_buffers,
    constant_weights,
    frozen_norm_statistics,
    gathered_weights,
    is_norm_statistic,
    preserved_modes,
)

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(3),
    "batch without momentum": lambda: nn.BatchNorm2d(3, momentum=None),
    "batch without tracking": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "instance that tracks": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    "instance": lambda: nn.InstanceNorm2d(3),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("train", [False, True])
def test_frozen_statistics_change_no_output_and_no_buffer(kind: str, train: bool) -> None:
    norm, twin = (NORMS[kind]().train(train) for _ in range(2))
    images = torch.randn(4, 3, 5, 5) * 3 + 1
    expected = twin(images)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    settings = dict(norm.__dict__)
    with frozen_norm_statistics(norm):
        assert torch.equal(norm(images), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norm.__dict__ == settings


def test_frozen_statistics_are_thawed_afterwards() -> None:
    norm = nn.BatchNorm2d(3)
    with frozen_norm_statistics(norm):
        norm(torch.randn(4, 3, 5, 5))
    norm(torch.randn(4, 3, 5, 5))
    assert int(norm.num_batches_tracked) == 1


def test_frozen_statistics_cover_every_root_and_nest() -> None:
    first, second = nn.Sequential(nn.BatchNorm1d(2)), nn.InstanceNorm1d(2, momentum=0.3, track_running_stats=True)
    x = torch.randn(3, 2, 4)

    def block() -> None:
        with frozen_norm_statistics(first, second), frozen_norm_statistics(first):
            second(first(x))
            raise ZeroDivisionError("in the block")

    with pytest.raises(ZeroDivisionError, match="in the block"):
        block()
    assert first[0].track_running_stats
    assert second.momentum == 0.3
    assert int(first[0].num_batches_tracked) == 0
    assert torch.equal(second.running_mean, torch.zeros(2))


def test_statistics_are_told_from_other_buffers() -> None:
    norm = nn.BatchNorm2d(3)
    norm.register_buffer("mine", torch.zeros(1))
    assert is_norm_statistic(norm, "running_mean")
    assert is_norm_statistic(norm, "num_batches_tracked")
    assert not is_norm_statistic(norm, "mine")
    assert not is_norm_statistic(nn.Linear(1, 1), "running_mean")


def test_borrowed_buffers_go_back_whatever_happened_to_them() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    own, lent = model[1].running_mean, torch.ones(2)

    def block() -> None:
        with borrowed_buffers(model, {"1.running_mean": lent}):
            assert model[1].running_mean is lent
            model[1].running_mean = torch.full((2,), 3.0)  # reassigned, as some layers do
            raise ZeroDivisionError("in the block")

    with pytest.raises(ZeroDivisionError, match="in the block"):
        block()
    assert model[1].running_mean is own
    assert torch.equal(own, torch.zeros(2))


def test_constant_weights_are_weights_again_afterwards() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].bias.requires_grad_(False)

    def block() -> None:
        with constant_weights(model):
            assert not model(torch.ones(1, 2)).requires_grad
            raise ZeroDivisionError("in the block")

    with pytest.raises(ZeroDivisionError, match="in the block"):
        block()
    assert [weight.requires_grad for weight in model.parameters()] == [True, True, True, False]


def test_constant_weights_build_no_graph_until_they_thaw() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with constant_weights(model) as thaw:
        hidden = model[0](torch.ones(1, 2))
        thaw()
        model[1](hidden).sum().backward()
    assert model[0].weight.grad is None
    assert model[1].weight.grad is not None


def test_weights_that_stand_in_for_frozen_ones_thaw_with_them() -> None:
    model, gathered = nn.Linear(2, 2), nn.Parameter(torch.ones(2, 2), requires_grad=False)
    shard = model.weight
    with constant_weights(model) as thaw:
        model.weight = gathered
        thaw()
        assert gathered.requires_grad
    assert shard.requires_grad


class Sharded(nn.Module):
    """Notes what it is told, as what `fully_shard` returns would."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[bool, bool]] = []

    def set_reshard_after_backward(self, reshard: bool, *, recurse: bool = True) -> None:
        self.told.append((reshard, recurse))


def test_gathered_weights_are_kept_for_as_long_as_the_context() -> None:
    model = Sharded()

    def block() -> None:
        with gathered_weights(model):
            assert model.told == [(False, False)]
            raise ZeroDivisionError("in the block")

    with pytest.raises(ZeroDivisionError, match="in the block"):
        block()
    assert model.told == [(False, False), (True, False)]
    with gathered_weights(nn.Linear(1, 1)):
        pass


def test_modes_are_given_back_to_every_submodule() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout(), nn.Dropout()), nn.Dropout())
    model[0][1].eval()

    def block() -> None:
        with preserved_modes(model):
            model.eval()
            model[0][1].train()
            raise ZeroDivisionError("in the block")

    with pytest.raises(ZeroDivisionError, match="in the block"):
        block()
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


def test_statistics_that_are_left_alone_may_be_written_to_outside_of_inference_mode_too() -> None:
    norm = nn.InstanceNorm2d(2, track_running_stats=True)
    images = torch.randn(2, 2, 4, 4)
    with torch.inference_mode(), frozen_norm_statistics(norm), torch.inference_mode(False):
        assert torch.equal(norm(images), norm(images))
    assert not norm.running_mean.any()
