"""A model given back as it was, whatever ran."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.tracing.keeping import give_modes_back, is_spread, kept


class Moves(nn.Module):
    """Changes, in every pass, all that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
        self.hidden = [nn.Linear(2, 2)]
        self.average, self.passes = torch.zeros(2), 0

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.frozen.weight.mul_(0.9).add_(self.linear.weight, alpha=0.1)
            self.linear.bias.data.clamp_(-0.01, 0.01)
            self.hidden[0].weight.data.mul_(0.5)
        y = self.linear(x)
        self.average.mul_(0.9).add_(y.mean(0))  # with its graph
        self.passes += 1
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(1))
        return y


def everything(model: Any) -> Any:
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: value.clone() for name, value in model.hidden[0].state_dict().items()},
        model.average.clone(),
        model.passes,
    ]


def test_everything_is_as_it_was() -> None:
    model = Moves()
    before, twin = everything(model), copy.deepcopy(model)
    with kept(model):
        for _ in range(3):
            model(torch.randn(4, 2)).sum().backward(retain_graph=True)
    for old, new in zip(before, everything(model), strict=True):
        if isinstance(old, dict):
            assert old.keys() == new.keys()
            assert all(torch.equal(old[name], new[name]) for name in old)
        else:
            assert torch.equal(torch.as_tensor(old), torch.as_tensor(new))
    assert all(weight.grad is None for weight in model.parameters())
    assert model.average.is_leaf
    copy.deepcopy(model)
    x = torch.randn(4, 2)
    assert torch.equal(model(x), twin(x))


def test_gradients_that_were_there_stay() -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    gradient = model.weight.grad
    assert gradient is not None
    values = gradient.clone()
    with kept(model):
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is gradient
    assert torch.equal(gradient, values)


def test_a_weight_that_became_part_of_a_graph_is_a_leaf_again() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with kept(model):
        model.weight.add_(torch.ones(2, 2, requires_grad=True))
    assert model.weight.is_leaf
    assert not model.weight.requires_grad
    torch.optim.SGD([model.weight.requires_grad_()], 0.1)


class Merges(nn.Linear):
    """Has its update in the weight in eval mode, as its own method sees to."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.update = torch.ones(2, 2)

    def train(self, mode: bool = True) -> Merges:
        if mode != self.training:
            self.weight.data += -self.update if mode else self.update
        return super().train(mode)


class Closes(nn.Linear):
    """Notes that it is put in eval mode."""

    closed = 0

    def eval(self) -> Closes:
        self.closed += 1
        return super().eval()


def test_modes_are_switched_by_the_modules_own_methods() -> None:
    model = nn.Sequential(nn.Sequential(Merges()), nn.Dropout(), Closes(2, 2)).train()
    model[1].eval()
    model[2].eval()
    before, modes = model[0][0].weight.clone(), [(one, one.training) for one in model.modules()]
    for run in (model.eval, model.train):
        run()
        give_modes_back(modes)
        assert torch.allclose(model[0][0].weight, before)
        assert [one.training for one in model.modules()] == [training for _, training in modes]
    assert model[2].closed == 2


def test_what_has_been_merged_is_given_back_to_the_last_digit() -> None:
    model = nn.Sequential(Merges()).train()
    before = model[0].weight.clone()
    with kept(model):
        model.eval()
        model(torch.randn(1, 2))
    assert model[0].training
    assert torch.equal(model[0].weight, before)


def test_a_model_on_one_process_is_not_spread() -> None:
    assert not is_spread(nn.Sequential(nn.Linear(1, 1)))
