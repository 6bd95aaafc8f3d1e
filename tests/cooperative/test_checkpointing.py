"""Activation checkpointing that repeats the first computation and leaves no trace."""

import copy

import pytest
import torch
from torch import nn

from latentaug.cooperative.checkpointing import checkpointed
from latentaug.tracing.isolation import frozen_norm_statistics
from tests.support.counting import bytes_kept


def network() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3))
    return nn.Sequential(
        block, nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    ).double()


@pytest.mark.parametrize("names", [["0"], ["0", "2"], [""]])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_and_statistics_are_those_of_the_plain_model(names, frozen):
    model, images = network(), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    other = copy.deepcopy(model)
    for one, which in ((model, []), (other, names)):
        torch.manual_seed(1)
        with checkpointed({name: one.get_submodule(name) for name in which}):
            if frozen:
                with frozen_norm_statistics(one):
                    loss = one(images).square().sum()
            else:
                loss = one(images).square().sum()
        loss.backward()  # the contexts are left
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    assert all(map(torch.equal, model.buffers(), other.buffers()))
    assert other[0][1].track_running_stats
    assert all("forward" not in vars(module) for module in other.modules())


def test_several_backward_passes_repeat_the_same_computation():
    model, images = network(), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    with checkpointed({"0": model[0]}):
        loss = model(images).square().sum()
    first, second = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert int(model[0][1].num_batches_tracked) == 1


def test_only_what_goes_into_a_module_is_kept():
    model, images = network(), torch.rand(3, 2, 8, 8, dtype=torch.float64)

    def checkpointing():
        with checkpointed({"": model}):
            model(images)

    weights = sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())
    assert bytes_kept(checkpointing) <= images.untyped_storage().nbytes()
    assert bytes_kept(lambda: model(images)) > images.untyped_storage().nbytes() + weights


def test_nothing_is_kept_or_repeated_without_gradients():
    model, images = network().eval(), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad(), checkpointed({"0": model[0]}):
        output = model(images)
    assert output.grad_fn is None
    assert torch.equal(output, model(images))
