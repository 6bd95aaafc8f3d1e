"""Transforms of style against loops over samples and channels."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy import stats

from latentaug.augment.ranges import log_odds_of_beta
from latentaug.augment.style import DSU, MixStyle, PermutedStyle, TriD
from tests.support.codes import KINDS, Kind, samples_of, seeded
from tests.support.oracles import errors
from tests.support.oracles.style import dsu, mix_style, permuted_style, tri_d

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
TWO_D = KINDS["2-D"]


@EVERY_KIND
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("partner", ["random", "crossdomain"])
def test_mixstyle_agrees_with_a_loop(kind: Kind, partner: str, detach: bool) -> None:
    transform = MixStyle(p=1, partner=partner, detach_statistics=detach)
    found = errors(transform, partial(mix_style, detach=detach), kind)
    assert found.values < 1e-12
    assert found.gradients < 1e-10


def test_the_loop_of_mixstyle_tells_its_options_apart() -> None:
    params = MixStyle(p=1)(TWO_D.code(), generator=seeded()).params
    swapped = {"order": params["order"].roll(1)}, {"own": params["own"].roll(1)}
    for other in swapped:
        assert (
            errors(MixStyle(p=1), lambda *args, other=other: mix_style(*args[:2], params | other), TWO_D).values > 0.1
        )
    assert errors(MixStyle(p=1), partial(mix_style, detach=False), TWO_D).gradients > 0.01


@EVERY_KIND
def test_all_of_oneself_changes_nothing_and_none_is_the_partner_s_style(kind: Kind) -> None:
    code = kind.code()
    change = MixStyle(p=1, eps=1e-12)(code, layout=kind.layout, generator=seeded())
    change.params["own"] = torch.ones(4)
    torch.testing.assert_close(change.apply(code), code, rtol=1e-9, atol=1e-9)
    change.params["own"] = torch.zeros(4)
    styled, given = samples_of(change.apply(code), kind.layout), samples_of(code, kind.layout)
    for i, partner in enumerate(change.params["order"].tolist()):
        for values, others in zip(styled[i], given[partner], strict=True):
            torch.testing.assert_close(values.mean(), others.mean(), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(values.std(), others.std(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_partners_across_domains_come_from_the_other_half(seed: int) -> None:
    code = torch.zeros(8, 1, 2)
    order = MixStyle(p=1, partner="crossdomain")(code, generator=seeded(seed)).params["order"].tolist()
    assert sorted(order[:4]) == [4, 5, 6, 7]
    assert sorted(order[4:]) == [0, 1, 2, 3]


def test_partners_are_any_order_each_as_likely() -> None:
    orders = [
        tuple(MixStyle(p=1)(torch.zeros(3, 1, 2), generator=seeded(seed)).params["order"].tolist())
        for seed in range(1200)
    ]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert all(abs(count - 200) < 4 * math.sqrt(1200 / 6 * 5 / 6) for count in counts)


def test_each_sample_has_a_fraction_of_its_own() -> None:
    own = MixStyle(p=1)(torch.zeros(64, 1, 2), generator=seeded()).params["own"]
    assert own.shape == (64,)
    assert len(own.unique()) > 40  # few of Beta(0.1, 0.1) are neither nought nor one, and those are alike in float32


@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 2, 1, 1), (3, 2, 4, 4)])
def test_single_positions_and_constant_channels_have_no_deviation(shape: tuple[int, ...]) -> None:
    code = torch.arange(6.0).view(3, 2, *[1] * (len(shape) - 2)).expand(shape).clone().requires_grad_()
    change = MixStyle(p=1, detach_statistics=False)(code, generator=seeded())
    changed, own = change.apply(code), change.params["own"]
    for i, partner in enumerate(change.params["order"].tolist()):
        expected = own[i] * code[i] + (1 - own[i]) * code[partner]
        torch.testing.assert_close(changed[i], expected)
    (gradient,) = torch.autograd.grad(changed.sum(), code)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_precision_are_float32(dtype: torch.dtype) -> None:
    code = (torch.randn(2, 1, 64, 64, generator=seeded()) * 0.05 + 300).to(dtype)
    code[1] = code[1] * 2
    assert code[0].var() == 0 or dtype == torch.float16  # bfloat16 holds 300 and 302, and nothing between
    change = MixStyle(p=1)(code, generator=seeded(1))
    assert change.params["order"].tolist() == [1, 0]
    changed = change.apply(code)
    assert changed.dtype == dtype
    assert torch.equal(changed, change.apply(code.float()).to(dtype))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha must be a finite number above 0; got 0"):
        MixStyle(alpha=0)
    with pytest.raises(ValueError, match=r"partner must be one of 'random', 'crossdomain'; got 'other'"):
        MixStyle(partner="other")
    with pytest.raises(ValueError, match=r"eps must be a finite number above 0; got 0"):
        MixStyle(eps=0)
    with pytest.raises(ValueError, match=r"^p must be in \[0, 1\]; got 2\. Did you mean 0\.02\?"):
        MixStyle(p=2)


# DSU --------------------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("detach", [True, False])
def test_dsu_agrees_with_a_loop(kind: Kind, detach: bool) -> None:
    found = errors(DSU(p=1, detach_statistics=detach), partial(dsu, detach=detach), kind)
    assert found.values < 1e-12
    assert found.gradients < 1e-10


def test_the_loop_of_dsu_tells_its_options_apart() -> None:
    params = DSU(p=1)(TWO_D.code(), generator=seeded()).params
    for name in params:
        other = params | {name: params[name].roll(1)}
        assert errors(DSU(p=1), lambda *args, other=other: dsu(*args[:2], other), TWO_D).values > 0.1
    assert errors(DSU(p=1), partial(dsu, detach=True), TWO_D).gradients > 0.01


def test_dsu_moves_each_channel_by_a_number_of_its_own() -> None:
    params = DSU(p=1)(torch.zeros(40, 50, 2), generator=seeded()).params
    assert sorted(params) == ["of_deviations", "of_means"]
    for sampled in params.values():
        assert sampled.shape == (40, 50)
        assert stats.kstest(sampled.flatten().numpy(), "norm").pvalue > 0.01
    assert abs(float(torch.corrcoef(torch.stack([one.flatten() for one in params.values()]))[0, 1])) < 4 / 2000**0.5


def test_dsu_s_new_means_vary_as_the_batch_s_do() -> None:
    """By the unbiased deviation: of two samples it is 1.41 times the biased one."""
    code = torch.tensor([0.0, 2.0]).view(2, 1, 1) + torch.tensor([-1.0, 1.0]).view(1, 1, 2)
    moved = torch.stack([DSU(p=1)(code, generator=seeded(seed)).apply(code).mean(2) for seed in range(2000)])
    off = moved.flatten(1) - torch.tensor([0.0, 2.0])
    assert stats.kstest(off[:, 0].numpy(), stats.norm(0, 2**0.5).cdf).pvalue > 0.01
    assert stats.kstest(off[:, 0].numpy(), stats.norm(0, 1).cdf).pvalue < 0.01


def test_dsu_may_invert_the_contrast() -> None:
    code = TWO_D.code()
    change = DSU(p=1)(code, generator=seeded())
    change.params["of_deviations"] = torch.full((4, 6), -100.0)
    changed = change.apply(code)
    for values, given in zip(changed.flatten(0, 1), code.flatten(0, 1), strict=True):
        assert torch.equal(values.flatten().argsort(), given.flatten().argsort(descending=True))


def test_dsu_leaves_a_batch_of_one_alone() -> None:
    code = torch.randn(1, 3, 4, 4, generator=seeded())
    with pytest.warns(UserWarning, match="DSU combines the samples of a batch"):
        assert DSU(p=1)(code, generator=seeded()).apply(code) is code
    params = {name: torch.ones(1, 3) for name in ("of_means", "of_deviations")}
    torch.testing.assert_close(DSU().transform(code, **params), code, rtol=0, atol=0.01)  # by eps, and no NaN


@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 2, 4, 4)])
def test_dsu_of_equal_samples_is_finite(shape: tuple[int, ...]) -> None:
    code = torch.ones(shape, requires_grad=True)
    changed = DSU(p=1)(code, generator=seeded()).apply(code)
    (gradient,) = torch.autograd.grad(changed.square().sum(), code)
    assert changed.isfinite().all()
    assert gradient.isfinite().all()


# PermutedStyle ----------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("detach", [True, False])
def test_permutedstyle_agrees_with_a_loop(kind: Kind, detach: bool) -> None:
    found = errors(PermutedStyle(p=1, detach_statistics=detach), partial(permuted_style, detach=detach), kind)
    assert found.values < 1e-12
    assert found.gradients < 1e-10


def test_the_loop_of_permutedstyle_tells_its_options_apart() -> None:
    other = {"order": PermutedStyle(p=1)(TWO_D.code(), generator=seeded()).params["order"].roll(1)}
    assert errors(PermutedStyle(p=1), lambda *args: permuted_style(*args[:2], other), TWO_D).values > 0.1
    assert errors(PermutedStyle(p=1), partial(permuted_style, detach=True), TWO_D).gradients > 0.01


def test_permutedstyle_is_mixstyle_with_nothing_of_one_s_own() -> None:
    code = TWO_D.code()
    change = PermutedStyle(p=1)(code, generator=seeded())
    mixed = MixStyle().transform(code, own=torch.zeros(4), **change.params)
    torch.testing.assert_close(change.apply(code), mixed, rtol=1e-12, atol=1e-12)


def test_permutedstyle_s_gradients_reach_sample_and_partner_and_nobody_else() -> None:
    code = TWO_D.code().requires_grad_()
    change = PermutedStyle(p=1)(code, generator=seeded())
    change.params["order"] = torch.tensor([1, 2, 3, 0])
    (gradient,) = torch.autograd.grad(change.apply(code)[0].square().sum(), code)
    assert gradient.flatten(1).any(1).tolist() == [True, True, False, False]


def test_permutedstyle_acts_in_one_batch_of_a_hundred() -> None:
    code, generator = torch.randn(2, 1, 2, generator=seeded()), seeded()
    acted = sum(not PermutedStyle()(code, generator=generator).is_identity for _ in range(4000))
    assert abs(acted - 40) < 4 * math.sqrt(40 * 0.99)


# TriD -------------------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("quantiles", [None, (0.1, 0.9)])
def test_trid_agrees_with_a_loop(kind: Kind, quantiles: tuple[float, float] | None) -> None:
    found = errors(TriD(p=1, quantiles=quantiles), tri_d, kind)
    assert found.values < 1e-12
    assert found.gradients < 1e-10


def test_the_loop_of_trid_tells_its_options_apart() -> None:
    params = TriD(p=1)(TWO_D.code(), generator=seeded()).params
    for name in params:
        other = params | {name: params[name].roll(1)}
        assert errors(TriD(p=1), lambda *args, other=other: tri_d(*args[:2], other), TWO_D).values > 0.01
    assert errors(TriD(p=1), partial(tri_d, detach=False), TWO_D).gradients > 0.01


def test_trid_s_channels_means_and_deviations_are_sampled_one_by_one() -> None:
    params = TriD(p=1)(torch.zeros(40, 50, 2), generator=seeded()).params
    assert params["chosen"].shape == (40, 50)
    assert abs(float(params["chosen"].double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(2000)
    for axis in (0, 1):  # neither a sample nor a channel is chosen as a whole: were it, this would be 0.25
        assert float(params["chosen"].double().mean(axis).var()) < 0.02
    for name in ("mean", "deviation"):
        assert stats.kstest(params[name].flatten().numpy(), "uniform").pvalue > 0.01


def test_trid_s_coin_is_the_paper_s() -> None:
    """A coin whose chance is sampled for each entry from Beta(α, α) is a fair one, whatever α is."""
    chance = log_odds_of_beta(0.1, 0.1, (20000,), seeded(1)).sigmoid()
    heads = torch.bernoulli(chance, generator=seeded())
    assert abs(float(heads.mean()) - 0.5) < 4 * 0.5 / math.sqrt(20000)


def test_trid_s_fraction_is_sampled_for_each_sample() -> None:
    chosen = TriD(p=1, fraction=(0.2, 0.6))(torch.zeros(300, 400, 2), generator=seeded()).params["chosen"]
    fractions = chosen.double().mean(1)
    assert 0.1 < float(fractions.min()) < 0.25
    assert 0.55 < float(fractions.max()) < 0.7


def test_trid_s_new_styles_are_within_the_quantiles_of_each_channel() -> None:
    code = TWO_D.code() * 100
    low, high = 0.25, 1.0
    params = TriD(p=1, quantiles=(low, high))(code, generator=seeded()).params
    for c in range(6):
        for name, own in (("mean", code[:, c].flatten(1).mean(1)), ("deviation", code[:, c].flatten(1).std(1))):
            ends = own.quantile(low), own.quantile(high)
            assert (
                (params[name][:, c] >= 0.999 * ends[0] - 1e-3) & (params[name][:, c] <= 1.001 * ends[1] + 1e-3)
            ).all()
    assert not ((params["mean"] >= 0) & (params["mean"] <= 1)).all()


def test_trid_of_one_sample_needs_others_for_quantiles_only() -> None:
    code = torch.randn(1, 6, 4, 4, generator=seeded())
    assert not torch.equal(TriD(p=1)(code, generator=seeded()).apply(code), code)
    with pytest.warns(UserWarning, match="TriD combines the samples of a batch"):
        assert TriD(p=1, quantiles=(0, 1))(code, generator=seeded()).apply(code) is code


def test_trid_of_the_paper_leaves_batch_mates_out_and_other_channels_bit_by_bit() -> None:
    code = TWO_D.code(dtype=torch.float32)
    change = TriD(p=1)(code, generator=seeded())
    others = code.clone()
    others[1:] = 9
    assert torch.equal(change.apply(others)[0], change.apply(code)[0])
    assert torch.equal(change.apply(code)[~change.params["chosen"]], code[~change.params["chosen"]])


@pytest.mark.parametrize("cls", [PermutedStyle, TriD])
@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 2, 4, 4)])
def test_constant_codes_stay_finite(cls: type[PermutedStyle] | type[TriD], shape: tuple[int, ...]) -> None:
    code = torch.full(shape, 5.0, requires_grad=True)
    changed = cls(p=1)(code, generator=seeded()).apply(code)
    (gradient,) = torch.autograd.grad(changed.square().sum(), code)
    assert changed.isfinite().all()
    assert gradient.isfinite().all()


def test_trid_s_options_out_of_range_are_refused() -> None:
    with pytest.raises(TypeError, match=r"quantiles must be a pair \(low, high\), or None; got 0\.5"):
        TriD(quantiles=0.5)
    with pytest.raises(ValueError, match=r"quantiles must be in \[0, 1\]; got 5"):
        TriD(quantiles=(5, 95))
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\]; got -1"):
        TriD(fraction=-1)
