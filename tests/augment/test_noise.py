"""Noise against loops over samples and channels, and its distribution."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy import stats

from latentaug.augment.base import LatentTransform
from latentaug.augment.noise import AdditiveNoise, MultiplicativeNoise
from tests.support.codes import KINDS, Kind, seeded
from tests.support.oracles import errors
from tests.support.oracles.noise import additive_noise, multiplicative_noise

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
BOTH = pytest.mark.parametrize("cls", [AdditiveNoise, MultiplicativeNoise])
TWO_D = KINDS["2-D"]


@EVERY_KIND
def test_additivenoise_agrees_with_a_loop(kind: Kind) -> None:
    found = errors(AdditiveNoise(), additive_noise, kind)
    assert found.values < 1e-12
    assert found.gradients == 0


def test_the_loop_of_additivenoise_tells_its_options_apart() -> None:
    params = AdditiveNoise()(TWO_D.code(), generator=seeded()).params
    for name in params:
        other = params | {name: params[name].roll(1, 0)}
        assert errors(AdditiveNoise(), lambda *args, o=other: additive_noise(*args[:2], o), TWO_D).values > 0.01
    assert errors(AdditiveNoise(), partial(additive_noise, detach=False), TWO_D).gradients > 0.001


@EVERY_KIND
@pytest.mark.parametrize("strength", [(0.0, 0.5), (0.2, 0.3), (1.0, 1.0)])
def test_multiplicativenoise_agrees_with_a_loop(kind: Kind, strength: tuple[float, float]) -> None:
    found = errors(MultiplicativeNoise(strength), partial(multiplicative_noise, strength=strength), kind)
    assert found.values < 1e-12
    assert found.gradients < 1e-12


def test_the_loop_of_multiplicativenoise_tells_strengths_apart() -> None:
    assert errors(MultiplicativeNoise(), partial(multiplicative_noise, strength=(0.1, 0.5)), TWO_D).values > 0.01


def test_additivenoise_is_as_strong_as_a_fraction_of_each_channel_s_deviation() -> None:
    code = torch.randn(4, 3, 4000, generator=seeded()) * torch.tensor([1.0, 10.0, 0.1]).view(1, 3, 1) + 100
    change = AdditiveNoise((0.1, 0.3))(code.double(), generator=seeded(1))
    added = change.apply(code.double()) - code.double()
    strengths = change.params["strength"].double()
    for i in range(4):
        for c in range(3):
            scaled = added[i, c] / code[i, c].double().std() / strengths[i]
            assert stats.kstest(scaled.numpy(), "norm").pvalue > 0.001
            assert stats.kstest(1.2 * scaled.numpy(), "norm").pvalue < 0.001
    assert len(strengths.unique()) == 4


def test_strengths_are_sampled_uniformly_for_each_sample() -> None:
    strengths = AdditiveNoise((0.1, 0.3))(torch.zeros(2000, 1, 1), generator=seeded()).params["strength"]
    assert stats.kstest(strengths.numpy(), stats.uniform(0.1, 0.2).cdf).pvalue > 0.01
    assert AdditiveNoise(0.25)(torch.zeros(3, 1, 1), generator=seeded()).params["strength"].tolist() == [0.25] * 3


def test_multiplicativenoise_has_a_factor_around_one_for_each_channel_of_each_sample() -> None:
    factor = MultiplicativeNoise(0.2)(torch.ones(40, 100, 3, 3), generator=seeded()).factor
    assert factor.shape == (40, 100, 1, 1)
    assert stats.kstest(factor.flatten().numpy(), stats.norm(1, 0.2).cdf).pvalue > 0.01
    spread = MultiplicativeNoise((0.0, 1.0))(torch.ones(40, 1000, 1), generator=seeded()).factor.std(1).flatten()
    assert float(spread.min()) < 0.1
    assert float(spread.max()) > 0.9


@BOTH
def test_no_strength_changes_nothing(cls: type[LatentTransform]) -> None:
    code = TWO_D.code(dtype=torch.float32)
    assert torch.equal(cls(strength=0)(code, generator=seeded()).apply(code), code)


@BOTH
def test_a_sample_s_noise_does_not_ask_its_batch_mates(cls: type[LatentTransform]) -> None:
    code = TWO_D.code()
    change = cls()(code, generator=seeded(1))
    others = code.clone()
    others[1:] = 9
    assert torch.equal(change.apply(others)[0], change.apply(code)[0])


@BOTH
def test_noise_is_for_training(cls: type[LatentTransform]) -> None:
    code = TWO_D.code(dtype=torch.float32)
    assert torch.equal(cls().eval()(code, generator=seeded()).apply(code), code)
    assert not torch.equal(cls()(code, generator=seeded()).apply(code), code)


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 2, 1, 1), (3, 2, 4, 4)])
def test_constant_codes_and_single_positions_get_no_additive_noise(shape: tuple[int, ...]) -> None:
    code = torch.full(shape, 5.0, requires_grad=True)
    changed = AdditiveNoise(1.0)(code, generator=seeded()).apply(code)
    (gradient,) = torch.autograd.grad(changed.square().sum(), code)
    assert torch.equal(changed, code)
    assert torch.equal(gradient, 2 * code)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deviations_of_half_precision_are_float32(dtype: torch.dtype) -> None:
    code = (torch.randn(2, 1, 64, 64, generator=seeded()) * 300).to(dtype)  # whose variance is no float16
    change = AdditiveNoise(0.5)(code, generator=seeded())
    assert change.apply(code).isfinite().all()
    assert torch.equal(change.apply(code), change.apply(code.float()).to(dtype))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_additivenoise_is_gated(p: float) -> None:
    code, generator = TWO_D.code(), seeded()
    acted = sum(not AdditiveNoise(p=p)(code, generator=generator).is_identity for _ in range(1000))
    assert abs(acted - 1000 * p) <= 4 * math.sqrt(1000 * p * (1 - p))


@BOTH
def test_strengths_out_of_range_are_refused(cls: type[LatentTransform]) -> None:
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]; got -1"):
        cls(strength=-1)
