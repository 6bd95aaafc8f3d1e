"""Losses backpropagated branch by branch, against plain automatic differentiation of their weighted sum."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from latentaug.cooperative.backpropagation import Backpropagation
from latentaug.cooperative.eager_losses import Losses
from latentaug.saliency import latent_saliency

WEIGHTS = {"trunk": 2.0, "first": 0.25, "second": 3.0, "absent": 1.0}


@dataclass
class Network:
    """A trunk whose code two branches start at; the second starts at what follows the code."""

    trunk: nn.Linear
    further: nn.Linear
    branches: nn.ModuleList
    inputs: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for part in (self.trunk, self.further, self.branches) for p in part.parameters()]

    def run(self, losses: Losses) -> Tensor:
        """Give all losses, and return the code."""
        code = self.trunk(self.inputs).tanh()
        after = self.further(code)
        losses.end("second", self.branches[1](losses.start("second", after)).square().mean())
        losses.end("first", self.branches[0](losses.start("first", code)).exp().mean())
        losses.add("trunk", after.square().mean())
        return code


def network() -> Network:
    torch.manual_seed(0)
    parts = nn.Linear(3, 4).double(), nn.Linear(4, 4).double()
    branches = nn.ModuleList([nn.Linear(4, 5), nn.Linear(4, 5)]).double()
    return Network(*parts, branches, torch.randn(6, 3, dtype=torch.float64))


def plain_gradients(weights: dict[str, float]) -> list[Tensor]:
    """Differentiate the weighted sum written out."""
    net = network()
    code = net.trunk(net.inputs).tanh()
    after = net.further(code)
    loss = (
        weights["trunk"] * after.square().mean()
        + weights["first"] * net.branches[0](code).exp().mean()
        + weights["second"] * net.branches[1](after).square().mean()
    )
    return list(torch.autograd.grad(loss, net.parameters))


# Sums -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eager", [False, True])
def test_losses_are_weighted_in_the_order_of_the_weights_and_summed(eager: bool) -> None:
    losses = Losses(WEIGHTS, Backpropagation() if eager else None)
    net = network()
    code = net.trunk(net.inputs).tanh()
    after = net.further(code)
    expected = {
        "trunk": 2.0 * after.square().mean(),
        "first": 0.25 * net.branches[0](code).exp().mean(),
        "second": 3.0 * net.branches[1](after).square().mean(),
    }
    net.run(losses)
    assert list(losses.weighted) == list(expected)
    for name, loss in losses.weighted.items():
        torch.testing.assert_close(loss.detach(), expected[name].detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.total.detach(), sum(expected.values()).detach(), rtol=1e-12, atol=0)


def test_losses_that_are_not_eager_are_one_graph() -> None:
    net = network()
    losses = Losses(WEIGHTS)
    code = torch.ones(2, requires_grad=True)
    assert losses.start("first", code) is code
    net.run(losses)
    assert all(parameter.grad is None for parameter in net.parameters)
    found = torch.autograd.grad(losses.total, net.parameters)
    torch.testing.assert_close(list(found), plain_gradients(WEIGHTS), rtol=1e-12, atol=1e-15)


# Branches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS | {"trunk": 0.0}, WEIGHTS | {"first": 0.0}])
def test_eager_losses_give_the_gradients_of_their_weighted_sum(weights: dict[str, float]) -> None:
    net = network()
    losses = Losses(weights, Backpropagation())
    net.run(losses)
    losses.backward()
    for parameter, expected in zip(net.parameters, plain_gradients(weights), strict=True):
        found = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_a_branch_is_backpropagated_when_it_ends_and_the_trunk_afterwards() -> None:
    net = network()
    losses = Losses(WEIGHTS, Backpropagation())
    net.run(losses)
    assert all(parameter.grad is not None for parameter in net.branches.parameters())
    assert net.trunk.weight.grad is net.further.weight.grad is None
    assert not losses.weighted["first"].requires_grad
    assert losses.weighted["trunk"].requires_grad
    losses.backward()
    assert net.trunk.weight.grad is not None
    assert net.further.weight.grad is not None


def test_a_branch_that_weighs_nothing_or_starts_at_a_constant_gets_the_tensor_itself() -> None:
    losses = Losses({"first": 0.0, "second": 1.0}, Backpropagation())
    code, constant = torch.ones(2, requires_grad=True), torch.ones(2)
    assert losses.start("first", code) is code
    assert losses.start("second", constant) is constant
    losses.end("first", code.sum())
    losses.end("second", constant.sum())
    losses.backward()
    assert code.grad is None
    assert losses.total == 2


def test_the_graph_of_an_ended_branch_is_gone() -> None:
    for eager in (False, True):
        code = torch.randn(4, requires_grad=True)
        losses = Losses({"branch": 1.0}, Backpropagation() if eager else None)
        loss = losses.start("branch", code).exp().sum()
        losses.end("branch", loss)
        if eager:
            with pytest.raises(RuntimeError, match="a second time"):
                loss.backward()
        else:
            loss.backward()


# Saliencies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_the_saliency_is_the_gradient_without_the_weight_whichever_way_it_comes(scale: float | None) -> None:
    net = network()
    code = net.trunk(net.inputs).tanh()
    expected = torch.autograd.grad(net.branches[0](code).exp().mean(), code)
    for eager in (False, True):
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        losses = Losses(WEIGHTS, Backpropagation(scaler=scaler, scale=0.25) if eager else None)
        code = network().run(losses)
        torch.testing.assert_close(losses.saliencies("first", [code]), list(expected), rtol=1e-12, atol=1e-15)


def test_a_loss_without_a_branch_is_differentiated_by_all_codes_and_stays_to_be_backpropagated() -> None:
    first, second = (torch.tensor(value, requires_grad=True) for value in ([1.0, 2.0], [3.0, 4.0]))
    losses = Losses({"trunk": 5.0}, Backpropagation())
    losses.add("trunk", (first.square() * second).sum())
    torch.testing.assert_close(
        losses.saliencies("trunk", [first, second]),
        [2 * first.detach() * second.detach(), first.detach().square()],
    )
    assert first.grad is None
    losses.backward()
    assert first.grad is not None
    torch.testing.assert_close(first.grad, 5 * 2 * first.detach() * second.detach())


def test_the_saliency_of_a_half_precision_branch_is_in_single_precision() -> None:
    code = torch.tensor([0.5, 0.25], dtype=torch.float16, requires_grad=True)
    losses = Losses({"branch": 4.0}, Backpropagation())
    losses.end("branch", losses.start("branch", code).float().square().sum())
    (found,) = losses.saliencies("branch", [code])
    (expected,) = [latent_saliency(code.float().square().sum(), code)]
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)
