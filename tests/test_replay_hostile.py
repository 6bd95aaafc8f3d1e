"""Replays against the oracle, on models that punish every shortcut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.tap import LatentTap
from tests.hostile_models import (
    CASES,
    Case,
    change_code,
    close,
    gradients,
    random_state,
    same,
    seed_all,
    traces,
)


def halved(code: Tensor) -> Tensor:
    return code * 0.5


def unchanged(code: Tensor) -> Tensor:
    return code


def oracle(case: Case, train: bool, change: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Any, Tensor]:
    """Run a fresh model, seeded alike, with the code changed as the layer returns it."""
    number = case.call
    if number < 0:
        model = case.model(train)
        seen = change_code(model, case.layer, case.path, None, change)
        seed_all(0)
        model(case.images())
        number += seen.calls
    model = case.model(train)
    seen = change_code(model, case.layer, case.path, number, change)
    seed_all(0)
    output = model(case.images())
    assert seen.code is not None
    return model, output, seen.code


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
