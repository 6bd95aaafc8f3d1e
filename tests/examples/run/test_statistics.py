"""Running statistics that are tested: those of many batches, whatever the last of them were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import cardiac.run.presets
import nuclei.presets
from study.data.frame import DataError
from study.run.presets import STATISTICS
from study.run.statistics import BATCHES, renew_statistics

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.InstanceNorm2d(4))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 1, 8, 8, generator=generator) * number for number in range(1, BATCHES + 1)]


def test_they_are_the_mean_over_batches_each_of_which_counts_as_much() -> None:
    one = network()
    with torch.no_grad():
        codes = [one[0](batch) for batch in batches()]
    renew_statistics(one, batches(), CPU, "float32")
    torch.testing.assert_close(one[1].running_mean, torch.stack([code.mean((0, 2, 3)) for code in codes]).mean(0))
    variances = torch.stack([code.var((0, 2, 3)) for code in codes])
    torch.testing.assert_close(one[1].running_var, variances.mean(0))


def test_what_was_there_before_is_forgotten_and_nothing_else_changes() -> None:
    one, other = network(), network()
    other[1].running_mean += 100
    before = copy.deepcopy(one)
    momentum = one[1].momentum
    one.eval()
    for each in (one, other):
        renew_statistics(each, batches(), CPU, "float32")
    assert torch.equal(one[1].running_mean, other[1].running_mean)
    assert all(map(torch.equal, one.parameters(), before.parameters()))
    assert one[1].momentum == momentum
    assert not any(module.training for module in one.modules())
    assert all(parameter.grad is None for parameter in one.parameters())


def test_statistics_that_no_preset_has_are_refused() -> None:
    for study in (cardiac.run.presets, nuclei.presets):
        assert all(preset.statistics in STATISTICS for preset in study.PRESETS.values())
        with pytest.raises(DataError, match=r"--statistics must be one of .*; got 'new'"):
            study.Preset(statistics="new")
