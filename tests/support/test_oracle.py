"""The oracle: it changes the code that it is told to, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.hostile.table import CASES
from tests.support.compare import same
from tests.support.oracle import change_code, halved, number_of_the_call, oracle, unchanged
from tests.support.random_streams import seed_all


def test_the_oracle_changes_the_code() -> None:
    case = CASES["SkipConnection"]
    (_, plain, code), (_, changed, seen) = oracle(case, False, unchanged), oracle(case, False, halved)
    assert torch.equal(code, seen)
    assert not same(plain, changed)
    untouched = case.model(False)
    seed_all(0)
    assert same(untouched(case.images()), plain)


def test_the_smallest_change_of_the_code_shows() -> None:
    case = CASES["SkipConnection"]
    (_, plain, _), (_, changed, _) = oracle(case, False, unchanged), oracle(case, False, lambda code: code + 1e-12)
    assert not same(plain, changed)


def test_the_call_that_counts_is_the_one_that_is_changed() -> None:
    case = CASES["RecurrentInTheMiddle"]
    codes, outputs = [], []
    for number in range(3):
        model = case.model(False)
        seen = change_code(model, case.layer, case.path, number, halved)
        outputs.append(model(case.images()))
        codes.append(seen.code)
        assert seen.calls == 3
    assert not same(codes[0], codes[1])
    assert not same(outputs[0], outputs[1])
    assert same(outputs[case.call], oracle(case, False, halved)[1])
    assert number_of_the_call(CASES["Recurrent"], False) == 2


def test_a_code_that_is_never_made_is_no_result() -> None:
    case, asked = CASES["Recurrent"], []

    def change(code: Tensor) -> Tensor:
        asked.append(code)
        return code

    model = case.model(False)
    seen = change_code(model, case.layer, case.path, 3, change)
    model(case.images())
    assert (seen.code, asked) == (None, [])
    with pytest.raises(AssertionError, match="'cell' is not called so often"):
        oracle(type(case)(case.build, case.layer, call=3), False, halved)
