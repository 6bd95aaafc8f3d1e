"""Distributed tensors are whole in files and in parts in models; here of one process, which has the only part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from latentaug import ranks
from latentaug.tracing.keeping import is_distributed
from latentaug.training.average import Average
from latentaug.training.optimization import Optimization
from latentaug.training.plain import NotPlainError, plain
from latentaug.training.sharding import check_sharding, load_weights, optimizer_state, part_of, whole
from latentaug.training.trainer import CooperativeTrainer
from tests.support.tiny_training import tiny_coop

sharding = pytest.importorskip("torch.distributed.tensor")

pytestmark = [
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs the gloo backend"),
    pytest.mark.skipif(not hasattr(sharding, "distribute_tensor"), reason="PyTorch 2.5 has it"),
]


@pytest.fixture
def model(process_group: None) -> nn.Module:
    """A layer whose weights are distributed tensors."""
    mesh = init_device_mesh("cpu", (1,))
    layer: Any = nn.Linear(3, 4)
    for name, one in [*layer.named_parameters()]:
        setattr(layer, name, nn.Parameter(sharding.distribute_tensor(one.detach(), mesh, [sharding.Shard(0)])))
    return layer


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for one in model.parameters():
        one.grad = torch.ones_like(one)
    optimizer.step()
    return optimizer


def test_states_are_whole_in_a_file_and_in_parts_in_a_model(model: nn.Module) -> None:
    optimizer = stepped(model)
    held = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "list": [model.weight], "name": "a"}
    with pytest.raises(NotPlainError, match=r"model\['weight'\] can't be kept .* a part of a distributed tensor"):
        plain(held["model"], "model")
    state = copy.deepcopy(plain(whole(held), "state"))
    assert state["name"] == "a"
    assert torch.equal(state["list"][0], model.weight.full_tensor())
    unsharded = nn.Linear(3, 4)
    load_weights(unsharded, state["model"])
    other = torch.optim.Adam(unsharded.parameters(), lr=0.5)
    other.load_state_dict(optimizer_state(other, state["optimizer"]))  # which takes whole ones
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
    load_weights(model, state["model"])
    assert is_distributed(model.weight)
    assert torch.equal(model.weight.full_tensor(), unsharded.weight)
    again = torch.optim.Adam(model.parameters(), lr=0.5)
    again.load_state_dict(optimizer_state(again, state["optimizer"]))
    moment = again.state[model.weight]["exp_avg"]
    assert is_distributed(moment)
    assert torch.equal(moment.full_tensor(), other.state[unsharded.weight]["exp_avg"])
    assert not is_distributed(again.state[model.weight]["step"])
    load_weights(model, copy.deepcopy(model.state_dict()))  # its own kind as well


def test_other_ranks_take_part_and_keep_nothing(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    assert whole(model.state_dict())["weight"].numel() == 0


def test_what_is_no_tensor_of_the_parameters_shape_stays_as_it_is(model: nn.Module) -> None:
    step = torch.tensor(3.0)
    assert part_of(step, model.weight) is step
    assert part_of("a", model.weight) == "a"
    assert part_of(step, step) is step


def test_an_average_of_distributed_tensors_is_kept_as_a_whole(model: nn.Module) -> None:
    average = Average(0.5)
    before = model.weight.full_tensor().clone()
    average.update(model)
    stepped(model)
    average.update(model)
    expected = (before + model.weight.full_tensor()) / 2
    state = plain(whole(average.state_dict()), "average")
    torch.testing.assert_close(state["weight"], expected)
    other = Average(0.5)
    other.load_state_dict(state, model, "a file")
    with other.weights(model):
        torch.testing.assert_close(model.weight.full_tensor(), expected)


def test_a_state_of_an_optimizer_goes_on_in_parts(model: nn.Module) -> None:
    one, other = (Optimization(None, None, torch.device("cpu"), "float32", None) for _ in range(2))
    for optimization in (one, other):
        optimization.attach(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    one.update(1)
    other.load_state_dict(whole(one.state_dict()))
    for parameter in model.parameters():
        first, second = (each.optimizer.state[parameter]["exp_avg"] for each in (one, other))
        assert torch.equal(first.full_tensor(), second.full_tensor())


def test_flat_parameters_are_refused() -> None:
    coop = tiny_coop()
    coop.model._modules["_fsdp_wrapped_module"] = nn.Identity()
    for call in (check_sharding, CooperativeTrainer):
        with pytest.raises(ValueError, match=r"Use torch.distributed.fsdp.fully_shard\(coop\), its successor"):
            call(coop)
