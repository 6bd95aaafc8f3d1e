"""The list of loops: every transform has one, agrees with it, and would be caught if it did not."""

from __future__ import annotations

import inspect

import pytest
import torch

import latentaug
from latentaug import Adversarial, Compose, LatentTransform, Masker, MixStyle, OneOf, RandomApply
from tests.support.codes import KINDS, Kind
from tests.support.oracles import ORACLES, Oracle, errors, table
from tests.support.oracles.style import mix_style

WITHOUT = {LatentTransform, Masker, Adversarial, Compose, OneOf, RandomApply}  # bases, and what is made of others
EVERY_ORACLE = pytest.mark.parametrize("oracle", ORACLES.values(), ids=[cls.__name__ for cls in ORACLES])


def test_every_transform_has_a_loop() -> None:
    public = [getattr(latentaug, name) for name in latentaug.__all__]
    transforms = {one for one in public if inspect.isclass(one) and issubclass(one, LatentTransform)}
    assert transforms - WITHOUT == set(ORACLES)


@EVERY_ORACLE
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_transform_agrees_with_its_loop(oracle: Oracle, kind: Kind) -> None:
    found = errors(oracle.make(), oracle.expected, kind)
    assert found.values < 1e-6
    assert found.gradients < 1e-6


@EVERY_ORACLE
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_change_that_is_compared_changes_something(oracle: Oracle, kind: Kind) -> None:
    code, transform = kind.code(), oracle.make()
    change = errors(transform, lambda code, kind, params: code * 1, kind).change
    assert not torch.equal(change.apply(code), code)
    assert errors(transform, lambda code, kind, params: code * 1, kind).values > 1e-3


def test_errors_sees_wrong_values_and_wrong_gradients() -> None:
    kind = KINDS["2-D"]
    off = errors(MixStyle(p=1), lambda code, *rest: 1.01 * mix_style(code, *rest), kind)
    assert off.values == pytest.approx(0.01 / 1.01)
    assert off.gradients == pytest.approx(0.01 / 1.01)
    detached = errors(MixStyle(p=1), lambda code, *rest: mix_style(code.detach(), *rest) + 0 * code, kind)
    assert detached.values < 1e-12
    assert detached.gradients > 1


@pytest.mark.slow  # it measures again what the tests above have
def test_the_table_in_the_docs_is_what_the_loops_say() -> None:
    said = "run `python -m tests.support.oracles.table`"
    for documented, measured in zip(table.documented(), table.rows(), strict=True):
        assert documented[:4] == measured[:4], said
        assert float(documented[4]) < table.GOOD, said
