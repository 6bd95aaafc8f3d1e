"""Cooperative models that are compiled: the same gradients, parts that run compiled, and nothing traced twice."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug.augment.masks import TargetedChannelMask
from latentaug.augment.style import MixStyle
from latentaug.cooperative.compiling import parts_of
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.step import cooperative_backward
from latentaug.saliency import latent_saliency
from latentaug.tap.augmented import augmented
from latentaug.tap.calculator import SaliencyCalculator
from latentaug.tap.latent_tap import LatentTap
from latentaug.tracing.intercept import is_compiled
from tests.models.segmenters import SkipNet
from tests.support.codes import seeded
from tests.support.cooperation import assert_same_gradients, batch
from tests.support.graphs import Graphs

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*attribute of a Tensor that is not a leaf.*", "ignore:.*deprecated.*", "ignore:Dynamo does not know"
)


@pytest.fixture
def graphs() -> Graphs:
    torch._dynamo.reset()
    return Graphs()


def network() -> nn.Module:
    torch.manual_seed(0)
    return SkipNet(num_classes=3, dropout=0.0).double()


def cooperative(net: nn.Module) -> CooperativeModel:
    images = batch(dtype=torch.float64)[0]
    torch.manual_seed(1)
    return CooperativeModel(net, num_classes=3, example=images, reconstruction=True)


def compile_network(graphs: Graphs) -> tuple[CooperativeModel, Any]:
    coop = cooperative(torch.compile(network(), backend=graphs))  # type: ignore[arg-type]
    return coop, coop


def compile_within(graphs: Graphs) -> tuple[CooperativeModel, Any]:
    net = network()
    net.compile(backend=graphs)
    coop = cooperative(net)
    return coop, coop


def compile_by_method(graphs: Graphs) -> tuple[CooperativeModel, Any]:
    coop = cooperative(network())
    coop.compile(backend=graphs)
    return coop, coop


def compile_from_outside(graphs: Graphs) -> tuple[CooperativeModel, Any]:
    coop = cooperative(network())
    return coop, torch.compile(coop, backend=graphs)


WAYS: dict[str, Callable[[Graphs], tuple[CooperativeModel, Any]]] = {
    "the network": compile_network,
    "the network by its method": compile_within,
    "coop.compile": compile_by_method,
    "torch.compile(coop)": compile_from_outside,
}


@pytest.mark.parametrize("way", WAYS)
def test_steps_fill_the_gradients_of_a_plain_step_and_run_compiled(way: str, graphs: Graphs) -> None:
    images, labels = batch(dtype=torch.float64)
    coop, called = WAYS[way](graphs)
    plain = cooperative(network())
    for step in (cooperative_backward, lambda model, *args, **options: model(*args, **options).loss.backward()):
        runs = graphs.runs
        for model, run in ((plain, plain), (coop, called)):
            model.zero_grad()
            torch.manual_seed(2)
            step(run, images, labels, generator=seeded())
        for ours, expected in zip(coop.parameters(), plain.parameters(), strict=True):
            assert (ours.grad is None) is (expected.grad is None)
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-10, atol=1e-14)
        assert graphs.runs > runs
    assert all(map(is_compiled, parts_of(coop).values()))
    compiled = graphs.count
    for seed in range(3):
        cooperative_backward(called, images, labels, generator=seeded(seed))
    assert graphs.count == compiled  # nothing is compiled again and again


@pytest.mark.parametrize("way", WAYS)
def test_predictions_are_those_of_a_plain_model(way: str, graphs: Graphs) -> None:
    images, _ = batch(dtype=torch.float64)
    coop, called = WAYS[way](graphs)
    plain = cooperative(network()).eval()
    called.eval()
    torch.testing.assert_close(called(images), plain(images))
    assert torch.equal(called.predict(images), plain.predict(images))
    assert [*coop.deployed().state_dict()] == [*plain.deployed().state_dict()]


def test_it_is_said_once_which_parts_of_a_compiled_network_are_compiled(
    graphs: Graphs, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="latentaug"):
        coop, _ = compile_network(graphs)
        for _ in range(2):
            cooperative_backward(coop, *batch(dtype=torch.float64))
    told = [one.getMessage() for one in caplog.records if "compiled as a whole" in one.getMessage()]
    assert len(told) == 1
    assert all(name in told[0] for name in parts_of(coop))


def test_calls_that_are_compiled_from_outside_run_as_written_which_is_said_once(
    graphs: Graphs, caplog: pytest.LogCaptureFixture
) -> None:
    coop = cooperative(network())
    compiled: Any = torch.compile(coop, backend=graphs)
    for _ in range(2):
        compiled(*batch(dtype=torch.float64)).loss.backward()
    told = [one for one in caplog.records if "Call coop.compile(...) in its place" in one.getMessage()]
    assert len(told) == 1


# A tap inside a compiled function -------------------------------------------------------------------------------------


def saliency_of(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with LatentTap(net, "down") as tap:
        loss = F.cross_entropy(net(images), labels)
        mask = TargetedChannelMask()(tap.code, latent_saliency(loss, tap.code), generator=seeded())
        return loss + F.cross_entropy(tap.replay(mask.apply(tap.code)), labels)


def objective_of(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with LatentTap(net, "down") as tap:
        loss = F.cross_entropy(net(images), labels)
        hard = tap.replay(TargetedChannelMask(), objective=lambda out: F.cross_entropy(out, labels), generator=seeded())
        return loss + F.cross_entropy(hard, labels)


def one_pass(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with augmented(net, {"down": MixStyle(p=1.0)}, generator=seeded()) as run:
        return run.loss(F.cross_entropy, net(images), labels)


def calculated(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with SaliencyCalculator(net, "down") as calculator:
        loss = F.cross_entropy(net(images), labels)
        return loss + calculator(loss).square().sum()


def whole_step(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    coop = cooperative(net)
    loss: Tensor = coop(images, labels, generator=seeded()).loss
    return loss


NEW_ENOUGH = pytest.mark.skipif(
    torch.__version__.startswith("2.4."),
    reason="PyTorch 2.4 fails itself where it traces a mask, or a class being made",
)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(saliency_of, marks=NEW_ENOUGH),
        objective_of,
        one_pass,
        calculated,
        pytest.param(whole_step, marks=NEW_ENOUGH),
    ],
)
def test_a_compiled_function_may_tap(function: Callable[[nn.Module, Tensor, Tensor], Tensor], graphs: Graphs) -> None:
    images, labels = batch(dtype=torch.float64)
    plain = network()
    net = copy.deepcopy(plain)
    torch.manual_seed(3)
    expected = function(plain, images, labels)
    expected.backward()
    compiled = torch.compile(function, backend=graphs)
    torch.manual_seed(3)
    found = compiled(net, images, labels)
    found.backward()
    torch.testing.assert_close(found, expected)
    assert_same_gradients(net, plain)
