"""Replays against the oracle, on models that punish every shortcut."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentaug.tap.latent_tap import LatentTap
from tests.models.case import Case
from tests.models.hostile.table import CASES
from tests.support.compare import close, gradients, same
from tests.support.counting import CountOperations
from tests.support.oracle import change_code, halved, number_of_the_call, oracle, unchanged
from tests.support.random_streams import random_state, seed_all
from tests.support.traces import traces
from tests.support.trees import leaves


def detached_oracle(case: Case) -> tuple[Any, list[Tensor | None]]:
    """Like the oracle in train mode, with weights that are constants until the code, and gradients from there on."""
    model = case.model(True)
    weights = weights_of(model)
    leaf = []

    def change(code: Tensor) -> Tensor:
        for weight in weights:
            weight.requires_grad_(True)
        leaf.append(halved(code.detach()).requires_grad_())
        with torch.enable_grad():
            return leaf[0] * 1

    change_code(model, case.layer, case.path, number_of_the_call(case, True), change)
    for weight in weights:
        weight.requires_grad_(False)
    seed_all(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        output = model(case.images())
    return output, gradients(model, output, leaf)


ROWS = [
    pytest.param(case, train, id=f"{name}-{'train' if train else 'eval'}")
    for name, case in CASES.items()
    for train in case.modes
]


@pytest.mark.parametrize(("case", "train"), ROWS)
def test_the_captured_pass_is_a_plain_pass(case: Case, train: bool) -> None:
    plain = case.model(train)
    seed_all(0)
    expected = plain(case.images())
    stream, expected_gradients = random_state(), gradients(plain, expected)
    model = case.model(train)
    seed_all(0)
    with LatentTap(model, case.spot, call=case.call) as tap:
        output = model(case.images())
        assert random_state() == stream
        assert same(output, expected)
        assert close(gradients(model, output), expected_gradients)
        _, _, code = oracle(case, train, unchanged)
        assert torch.equal(tap.code, code)
    assert same(dict(model.named_buffers()) or [torch.zeros(1)], dict(plain.named_buffers()) or [torch.zeros(1)])


@pytest.mark.parametrize(("case", "train"), ROWS)
def test_replays_equal_the_oracle(case: Case, train: bool) -> None:
    reference, expected, _ = oracle(case, train, halved)
    expected_gradients = gradients(reference, expected)
    model = case.model(train)
    seed_all(0)
    with LatentTap(model, case.spot, call=case.call) as tap:
        output = model(case.images())
        for full in (False, True, False):
            before, stream = traces(model), random_state()
            assert same(tap.replay(None, full=full), output)
            replayed = tap.replay(halved(tap.code), full=full)
            assert same(replayed, expected)
            assert close(gradients(model, replayed), expected_gradients)
            assert random_state() == stream
            assert traces(model) == before
            type(model).forward(model, case.images(1))  # behind the tap's back; nothing of it may be remembered


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_fast_replay_skips_what_it_may_and_nothing_else(case: Case) -> None:
    model = case.model(False)
    with LatentTap(model, case.spot, call=case.call) as tap:
        model(case.images())
        counts = []
        for full in (False, True):
            with torch.no_grad(), CountOperations() as operations:
                tap.replay(halved(tap.code), full=full)
            counts.append(operations.count)
    assert (counts[0] < counts[1]) is case.fast


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_detached_replay_gives_gradients_to_what_follows_only(case: Case) -> None:
    expected, expected_gradients = detached_oracle(case)
    model = case.model(True)
    seed_all(0)
    with LatentTap(model, case.spot, call=case.call) as tap:
        model(case.images())
        new = halved(tap.code.detach()).requires_grad_()
        before = traces(model)
        for full in (False, True):
            output = tap.replay(new, full=full, detach=True)
            # Not bitwise: which kernel nn.Linear takes depends on whether its weight requires a gradient.
            assert close(list(leaves(output)), list(leaves(expected)))
            found = gradients(model, output, [new])
            assert close(found, expected_gradients)
            assert float(found[-1].norm()) > 0
        assert traces(model) == before


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


# Negative controls: each helper must notice what it is there to notice.


def test_the_oracle_changes_the_code() -> None:
    case = CASES["SkipConnection"]
    (_, plain, code), (_, changed, seen) = oracle(case, False, unchanged), oracle(case, False, halved)
    assert torch.equal(code, seen)
    assert not same(plain, changed)
    untouched = case.model(False)
    seed_all(0)
    assert same(untouched(case.images()), plain)


def test_same_and_close_notice_the_smallest_difference() -> None:
    a = torch.ones(3, dtype=torch.float64)
    assert same({"a": [a]}, {"a": [a.clone()]})
    assert not same(a, a + 1e-15)
    assert not same(a, [a, a])
    assert not same([], [])
    assert close([a, None], [a, torch.zeros(3)])
    assert not close([a], [a + 1e-9])
    assert not close([a], [None])
    assert not close([a], [])


def test_traces_notice_what_is_left_behind() -> None:
    model = CASES["BatchNorm"].model(True)
    before = traces(model)
    assert traces(model) == before
    for leave in (
        lambda: model.stem.register_forward_hook(lambda *_: None),
        lambda: model.stem.__dict__.__setitem__("forward", model.stem.forward),
        lambda: model.norms.eval(),
        lambda: setattr(model.norms[0], "momentum", 0.0),
        lambda: setattr(model.norms[0], "running_mean", torch.zeros(4)),
        lambda: model.stem.weight.detach().mul_(1),
        lambda: model.stem.requires_grad_(False),
    ):
        before = traces(model)
        leave()
        assert traces(model) != before


def test_random_state_notices_a_draw_from_any_stream() -> None:
    for draw in (lambda: torch.rand(()), random.random, lambda: np.random.rand()):  # noqa: NPY002
        before = random_state()
        assert random_state() == before
        draw()
        assert random_state() != before
