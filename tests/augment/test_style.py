"""MixStyle against a loop over samples and channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentaug.augment.style import MixStyle
from tests.support.codes import KINDS, Kind, code_of, samples_of, seeded

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
EPS = 1e-6


def mixed_by_loop(code: Tensor, kind: Kind, order: list[int], own: list[float], detach: bool) -> Tensor:
    """The paper's formula, one sample and one channel at a time, with the unbiased variance of the authors' code."""

    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        n = values.numel()
        mean = values.sum() / n
        deviation = ((values - mean).square().sum() / max(n - 1, 1) + EPS).sqrt()
        return (mean.detach(), deviation.detach()) if detach else (mean, deviation)

    samples = samples_of(code, kind.layout)
    changed = []
    for i, channels in enumerate(samples):
        changed.append([])
        for values, others in zip(channels, samples[order[i]], strict=True):
            (mean, deviation), (mean2, deviation2) = moments(values), moments(others)
            new_deviation = own[i] * deviation + (1 - own[i]) * deviation2
            new_mean = own[i] * mean + (1 - own[i]) * mean2
            changed[-1].append((values - mean) / deviation * new_deviation + new_mean)
    return code_of(changed, code, kind.layout)


@EVERY_KIND
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("partner", ["random", "crossdomain"])
def test_agrees_with_a_loop_in_values_and_gradients(kind: Kind, partner: str, detach: bool) -> None:
    code = kind.code().requires_grad_()
    transform = MixStyle(p=1, partner=partner, detach_statistics=detach, eps=EPS)
    change = transform(code, layout=kind.layout, generator=seeded())
    order, own = change.params["order"].tolist(), change.params["own"].double().tolist()
    changed, expected = change.apply(code), mixed_by_loop(code, kind, order, own, detach)
    torch.testing.assert_close(changed, expected, rtol=1e-12, atol=1e-12)
    weight = kind.code(seed=1)
    gradient, wanted = (torch.autograd.grad((one * weight).sum(), code)[0] for one in (changed, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-10)


def test_the_loop_tells_its_options_apart() -> None:
    kind = KINDS["2-D"]
    code = kind.code().requires_grad_()
    order, own, weight = [1, 2, 3, 0], [0.2, 0.4, 0.6, 0.8], kind.code(seed=1)
    first = mixed_by_loop(code, kind, order, own, True)
    assert not torch.allclose(first, mixed_by_loop(code, kind, [1, 0, 3, 2], own, True))
    assert not torch.allclose(first, mixed_by_loop(code, kind, order, own[::-1], True))
    gradients = [
        torch.autograd.grad((mixed_by_loop(code, kind, order, own, detach) * weight).sum(), code)[0]
        for detach in (True, False)
    ]
    assert not torch.allclose(*gradients)


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
    with pytest.raises(ValueError, match=r"alpha must be above 0; got 0"):
        MixStyle(alpha=0)
    with pytest.raises(ValueError, match=r"partner must be one of 'random', 'crossdomain'; got 'other'"):
        MixStyle(partner="other")
    with pytest.raises(ValueError, match=r"eps must be above 0; got 0"):
        MixStyle(eps=0)
    with pytest.raises(ValueError, match=r"^p must be in \[0, 1\]; got 2\. Did you mean 0\.02\?"):
        MixStyle(p=2)
