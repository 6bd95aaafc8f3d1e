"""EFDMix and CrossNorm against loops over samples and channels."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy import stats

from latentaug.augment.style import PermutedStyle
from latentaug.augment.style_exchange import CrossNorm, EFDMix
from tests.support.codes import KINDS, Kind, samples_of, seeded
from tests.support.oracles import errors
from tests.support.oracles.style import cross_norm, efd_mix

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
EVERY_CROP = pytest.mark.parametrize("crop", ["neither", "style", "content", "both"])
TWO_D = KINDS["2-D"]


# EFDMix -----------------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("partner", ["random", "crossdomain"])
def test_efdmix_agrees_with_a_loop(kind: Kind, partner: str) -> None:
    found = errors(EFDMix(p=1, partner=partner), efd_mix, kind)
    assert found.values < 1e-12
    assert found.gradients < 1e-12


def test_the_loop_of_efdmix_tells_its_options_apart() -> None:
    params = EFDMix(p=1)(TWO_D.code(), generator=seeded()).params
    for name in params:
        other = params | {name: params[name].roll(1)}
        found = errors(EFDMix(p=1), lambda *args, other=other: efd_mix(*args[:2], other), TWO_D)
        assert found.values > 0.1
        assert found.gradients > 0.1


@EVERY_KIND
def test_without_anything_of_its_own_a_sample_has_the_partner_s_values_in_its_own_order(kind: Kind) -> None:
    code = kind.code()
    change = EFDMix(p=1)(code, layout=kind.layout, generator=seeded())
    change.params["own"] = torch.zeros(4)
    changed, given = samples_of(change.apply(code), kind.layout), samples_of(code, kind.layout)
    for i, partner in enumerate(change.params["order"].tolist()):
        for values, own, others in zip(changed[i], given[i], given[partner], strict=True):
            torch.testing.assert_close(values.flatten().sort().values, others.flatten().sort().values)
            assert torch.equal(values.flatten().argsort(), own.flatten().argsort())


def test_efdmix_s_gradient_is_one_to_the_sample_and_the_rest_to_the_partner() -> None:
    code = TWO_D.code().requires_grad_()
    change = EFDMix(p=1)(code, generator=seeded())
    change.params.update(order=torch.tensor([1, 2, 3, 0]), own=torch.tensor([0.25, 0.5, 0.5, 0.5]))
    (gradient,) = torch.autograd.grad(change.apply(code)[0].sum(), code)
    assert torch.equal(gradient[0], torch.ones_like(gradient[0]))
    torch.testing.assert_close(gradient[1], torch.full_like(gradient[1], 0.75))
    assert not gradient[2:].any()


def test_equal_values_are_ranked_by_their_position() -> None:
    """As after a ReLU, where half of a channel is zero."""
    code = TWO_D.code().relu()
    assert int((code == 0).sum()) > 200
    change = EFDMix(p=1)(code, generator=seeded())
    change.params.update(order=torch.tensor([1, 2, 3, 0]), own=torch.full((4,), 0.25))
    torch.testing.assert_close(change.apply(code), efd_mix(code, TWO_D, change.params))


def test_all_of_oneself_changes_nothing() -> None:
    code = TWO_D.code(dtype=torch.float32)
    change = EFDMix(p=1)(code, generator=seeded())
    change.params["own"] = torch.ones(4)
    assert torch.equal(change.apply(code), code)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_half_precision_are_mixed_in_float32(dtype: torch.dtype) -> None:
    code = TWO_D.code(dtype=torch.float32).to(dtype)
    change = EFDMix(p=1)(code, generator=seeded())
    assert torch.equal(change.apply(code), change.apply(code.float()).to(dtype))


# CrossNorm --------------------------------------------------------------------------------------------------------


@EVERY_KIND
@EVERY_CROP
@pytest.mark.parametrize("detach", [True, False])
def test_crossnorm_agrees_with_a_loop(kind: Kind, crop: str, detach: bool) -> None:
    transform = CrossNorm(crop, p=1, detach_statistics=detach)
    found = errors(transform, partial(cross_norm, detach=detach), kind)
    assert found.values < 1e-11
    assert found.gradients < 1e-9


def test_the_loop_of_crossnorm_tells_its_options_apart() -> None:
    params = CrossNorm("both", p=1)(TWO_D.code(), generator=seeded()).params
    for name in params:
        other = params | {name: params[name].roll(1, 0)}
        assert errors(CrossNorm("both", p=1), lambda *args, o=other: cross_norm(*args[:2], o), TWO_D).values > 0.01
        other = {key: value for key, value in params.items() if key in ("order", name)}
        if name != "order":
            assert errors(CrossNorm("both", p=1), lambda *args, o=other: cross_norm(*args[:2], o), TWO_D).values > 0.01
    assert errors(CrossNorm("both", p=1), partial(cross_norm, detach=True), TWO_D).gradients > 0.01


def test_without_boxes_crossnorm_is_permutedstyle() -> None:
    code = TWO_D.code()
    change = CrossNorm(p=1, eps=1e-6)(code, generator=seeded())
    assert sorted(change.params) == ["order"]
    torch.testing.assert_close(change.apply(code), PermutedStyle().transform(code, **change.params))


@EVERY_CROP
def test_crossnorm_s_gradients_reach_sample_and_partner_and_nobody_else(crop: str) -> None:
    code = TWO_D.code().requires_grad_()
    change = CrossNorm(crop, p=1)(code, generator=seeded())
    change.params["order"] = torch.tensor([1, 2, 3, 0])
    (gradient,) = torch.autograd.grad(change.apply(code)[0].square().sum(), code)
    assert gradient.flatten(1).any(1).tolist() == [True, True, False, False]


def test_what_is_outside_of_the_box_stays_bit_by_bit() -> None:
    code = TWO_D.code(dtype=torch.float32)
    change = CrossNorm("content", p=1)(code, generator=seeded())
    changed = change.apply(code) != code
    for i, ((top, left), (bottom, right)) in enumerate(change.params["content"].tolist()):
        outside = torch.ones(5, 7, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert not changed[i, :, outside].any()
        assert changed[i, :, ~outside].double().mean() > 0.9


def test_a_box_s_fraction_is_uniform_above_the_least() -> None:
    """As if it had been sampled until it is above; for other parameters stretched."""
    sides = []
    for seed in range(300):
        boxes = CrossNorm("style", p=1)(torch.zeros(4, 1, 400, 400), generator=seeded(seed)).params["style"]
        sides.append((boxes[:, 1] - boxes[:, 0]).double() / 400)
    sides = torch.cat(sides)
    assert (sides[:, 0] == sides[:, 1]).all()
    fractions = sides.prod(1).numpy()
    assert fractions.min() >= 0.1
    assert stats.kstest(fractions, stats.uniform(0.1, 0.9).cdf).pvalue > 0.01
    assert stats.kstest(fractions, "uniform").pvalue < 0.01


@pytest.mark.parametrize("beta", [1e-3, 1e3])
def test_boxes_are_sampled_in_bounded_time_whatever_the_parameters(beta: float) -> None:
    """Sampling until a fraction is large enough would never end for `least=1`."""
    code = torch.zeros(4, 1, 6, 6)
    boxes = CrossNorm("both", p=1, beta=beta, least=1.0)(code, generator=seeded()).params
    for name in ("content", "style"):
        assert boxes[name].tolist() == [[[0, 0], [6, 6]]] * 4


@EVERY_CROP
@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 2, 1, 1), (3, 2, 4, 4)])
def test_constant_codes_and_single_positions_stay_finite(crop: str, shape: tuple[int, ...]) -> None:
    code = torch.full(shape, 5.0, requires_grad=True)
    changed = CrossNorm(crop, p=1)(code, generator=seeded()).apply(code)
    (gradient,) = torch.autograd.grad(changed.square().sum(), code)
    torch.testing.assert_close(changed, code)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("cls", [CrossNorm, EFDMix])
def test_a_batch_of_one_stays_as_it_is(cls: type[CrossNorm] | type[EFDMix]) -> None:
    code = torch.randn(1, 3, 4, 4, generator=seeded())
    with pytest.warns(UserWarning, match=f"{cls.__name__} combines the samples of a batch"):
        assert cls(p=1)(code, generator=seeded()).apply(code) is code


def test_partners_are_sampled_once_per_batch_and_boxes_for_each_sample() -> None:
    params = CrossNorm("both", p=1)(torch.zeros(16, 1, 30, 30), generator=seeded()).params
    assert sorted(params["order"].tolist()) == list(range(16))
    for name in ("content", "style"):
        assert len(params[name].flatten(1).unique(dim=0)) > 12
    assert not torch.equal(params["content"], params["style"])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"crop must be one of 'neither', 'style', 'content', 'both'; got 'all'"):
        CrossNorm("all")
    with pytest.raises(ValueError, match=r"beta must be a finite number above 0; got 0"):
        CrossNorm(beta=0)
    with pytest.raises(ValueError, match=r"least must be in \[0, 1\]; got 10\. Did you mean 0\.1\?"):
        CrossNorm(least=10)
    with pytest.raises(ValueError, match=r"eps must be a finite number above 0; got 0"):
        CrossNorm(eps=0)
    with pytest.raises(ValueError, match=r"alpha must be a finite number above 0; got 0"):
        EFDMix(alpha=0)
    with pytest.raises(ValueError, match=r"partner must be one of 'random', 'crossdomain'; got 'other'"):
        EFDMix(partner="other")


def test_the_gate_is_the_batch_s() -> None:
    code, generator = torch.randn(2, 1, 4, generator=seeded()), seeded()
    for cls in (CrossNorm, EFDMix):
        acted = sum(not cls()(code, generator=generator).is_identity for _ in range(1000))
        assert abs(acted - 500) < 4 * math.sqrt(250)
