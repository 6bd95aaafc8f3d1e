"""MaxStyle, AdvStyle, FGSM and VAT against loops over samples and channels, and against ascents written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug.augment.adversarial import FGSM, VAT, AdvStyle, MaxStyle
from latentaug.augment.base import LatentTransform
from tests.support.codes import KINDS, Kind, code_of, samples_of, seeded
from tests.support.oracles import loss_of
from tests.support.oracles.adversarial import max_style, moments

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@EVERY_KIND
@pytest.mark.parametrize("steps", [0, 2])
def test_maxstyle_agrees_with_a_loop_in_values_and_gradients(kind: Kind, steps: int) -> None:
    code = kind.code().requires_grad_()
    change = MaxStyle(p=1, steps=steps)(code, layout=kind.layout, loss_at=loss_of(kind), generator=seeded())
    changed, expected = change.apply(code), max_style(code, kind, change.params)
    torch.testing.assert_close(changed, expected, rtol=1e-6, atol=1e-6)
    target = kind.code(seed=1)
    gradient, wanted = (torch.autograd.grad((one * target).sum(), code)[0] for one in (changed, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-6)


def test_the_loop_tells_parameters_apart() -> None:
    kind = KINDS["2-D"]
    code, change = kind.code(), MaxStyle(p=1, steps=0)(kind.code(), generator=seeded())
    right = max_style(code, kind, change.params)
    for name, value in (("own", change.params["own"].flip(0)), ("order", change.params["order"].roll(2))):
        assert not torch.allclose(max_style(code, kind, change.params | {name: value}), right)
    for name in ("scale_noise", "shift_noise"):
        assert not torch.allclose(max_style(code, kind, change.params | {name: change.params[name] * 0}), right)


@EVERY_KIND
def test_maxstyle_climbs_by_adam_from_where_it_starts(kind: Kind) -> None:
    code, loss = kind.code(), loss_of(kind)
    options: dict[str, Any] = {"layout": kind.layout, "loss_at": loss, "generator": seeded()}
    start = MaxStyle(p=1, steps=0)(code, **options | {"generator": seeded()})
    climbed = MaxStyle(p=1, steps=3, lr=0.2)(code, **options)
    names = ("own", "scale_noise", "shift_noise")
    variables = {name: start.params[name].clone().requires_grad_() for name in names}
    adam = torch.optim.Adam(variables.values(), lr=0.2)
    for _ in range(3):
        start.params |= variables
        (-loss(start.apply(code))).backward(inputs=[*variables.values()])
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            variables["own"].clamp_(0, 1)
    for name in names:
        torch.testing.assert_close(climbed.params[name], variables[name].detach(), rtol=1e-5, atol=1e-5)
    assert loss(climbed.apply(code)) > loss(MaxStyle(p=1, steps=0)(code, **options | {"generator": seeded()})(code))


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_nobody_is_the_partner_of_oneself_and_partners_are_as_likely(batch: int) -> None:
    orders = [
        tuple(MaxStyle(p=1, steps=0)(torch.zeros(batch, 1, 2), generator=seeded(i)).params["order"].tolist())
        for i in range(300)
    ]
    assert all(sorted(order) == list(range(batch)) for order in orders)
    assert all(order[i] != i for order in orders for i in range(batch))
    first = [order[0] for order in orders]
    expected = 300 / (batch - 1)
    assert all(abs(first.count(i) - expected) < 4 * math.sqrt(expected) for i in range(1, batch))


def test_without_noise_only_the_mixture_is_learned() -> None:
    code, loss = KINDS["2-D"].code(), loss_of(KINDS["2-D"])
    change = MaxStyle(p=1, noise=False)(code, loss_at=loss, generator=seeded())
    start = MaxStyle(p=1, noise=False, steps=0)(code, generator=seeded())
    assert not change.params["scale_noise"].any()
    assert not change.params["shift_noise"].any()
    assert not torch.equal(change.params["own"], start.params["own"])


def test_mixtures_stay_mixtures() -> None:
    code = KINDS["2-D"].code()
    change = MaxStyle(p=1, steps=20, lr=0.5)(code, loss_at=lambda new: new.square().mean(), generator=seeded())
    own = change.params["own"]
    assert ((own >= 0) & (own <= 1)).all()
    assert ((own == 0) | (own == 1)).any()


@pytest.mark.parametrize("transform", [MaxStyle(p=1, radius=0.05), MaxStyle(p=1, radius=(0.05, 0.05))], ids=repr)
def test_a_radius_bounds_how_far_styles_go(transform: MaxStyle) -> None:
    code, loss = KINDS["2-D"].code(), loss_of(KINDS["2-D"])
    start = MaxStyle(p=1, steps=0)(code, generator=seeded())
    climbed = transform(code, loss_at=loss, generator=seeded())
    for name in ("own", "scale_noise", "shift_noise"):
        away = (climbed.params[name] - start.params[name]).abs()
        assert 0.04 < float(away.max()) <= 0.05 + 1e-6


def statistics_gradient_by_loop(code: Tensor, saliency: Tensor, kind: Kind) -> tuple[list[list[float]], ...]:
    """The gradient of the loss by scale and shift, one channel at a time."""
    scales, shifts = [], []
    for channels, gradients in zip(samples_of(code, kind.layout), samples_of(saliency, kind.layout), strict=True):
        scales.append([])
        shifts.append([])
        for values, gradient in zip(channels, gradients, strict=True):
            mean, sigma = moments(values)
            scales[-1].append(float((gradient * (values - mean)).sum()))
            shifts[-1].append(float(gradient.sum() * sigma))
    return scales, shifts


@EVERY_KIND
def test_advstyle_moves_statistics_along_the_sign_of_their_gradients(kind: Kind) -> None:
    code, saliency = kind.code(), kind.code(seed=3)
    change = AdvStyle(0.25)(code, saliency, layout=kind.layout)
    scales, shifts = statistics_gradient_by_loop(code, saliency, kind)
    rows: list[list[Tensor]] = []
    for i, channels in enumerate(samples_of(code, kind.layout)):
        rows.append([])
        for c, values in enumerate(channels):
            mean, sigma = moments(values)
            scale, shift = (math.copysign(0.25, one[i][c]) for one in (scales, shifts))
            rows[-1].append((values - mean) / sigma * (sigma * (1 + scale)) + mean + sigma * shift)
    torch.testing.assert_close(change.apply(code), code_of(rows, code, kind.layout), rtol=1e-6, atol=1e-6)


@EVERY_KIND
def test_fgsm_adds_the_sign_scaled_to_the_code(kind: Kind) -> None:
    code, saliency = kind.code(), kind.code(seed=3)
    change = FGSM(0.5)(code, saliency, layout=kind.layout)
    rows = []
    for channels, gradients in zip(samples_of(code, kind.layout), samples_of(saliency, kind.layout), strict=True):
        size = torch.stack(channels).square().mean().sqrt()
        rows.append([v + 0.5 * size * g.sign() for v, g in zip(channels, gradients, strict=True)])
    torch.testing.assert_close(change.apply(code), code_of(rows, code, kind.layout))


@EVERY_KIND
def test_fgsm_of_norm_2_adds_the_gradient_scaled_to_the_code(kind: Kind) -> None:
    code, saliency = kind.code(), kind.code(seed=3)
    change = FGSM(0.5, norm="2")(code, saliency, layout=kind.layout)
    rows = []
    for channels, gradients in zip(samples_of(code, kind.layout), samples_of(saliency, kind.layout), strict=True):
        size, length = torch.stack(channels).norm(), torch.stack(gradients).norm()
        rows.append([v + 0.5 * size * g / length for v, g in zip(channels, gradients, strict=True)])
    torch.testing.assert_close(change.apply(code), code_of(rows, code, kind.layout))


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_several_steps_go_as_far_as_one_and_climb_higher(norm: str) -> None:
    kind = KINDS["2-D"]
    code, weight = kind.code(), 0.5 * kind.code(seed=9)

    def loss(new: Tensor) -> Tensor:  # of a gradient that turns on the way
        return (weight * new).sin().mean()

    live = code.clone().requires_grad_()
    (saliency,) = torch.autograd.grad(loss(live), live)
    one, several = (FGSM(0.5, norm=norm, steps=steps)(code, saliency, loss_at=loss).apply(code) for steps in (1, 5))
    reach = (lambda away: away.abs().amax((1, 2, 3))) if norm == "inf" else (lambda away: away.flatten(1).norm(dim=1))
    assert (reach(several - code) <= reach(one - code) + 1e-9).all()
    assert loss(several) > loss(one) > loss(code)


@EVERY_KIND
def test_vat_finds_what_changes_the_prediction_most(kind: Kind) -> None:
    code, factor = kind.code(), 1 + kind.code(seed=3).abs()

    def divergence(new: Tensor) -> Tensor:  # of second order in what is added, as the divergence is
        return (factor * (new - code)).square().sum()

    change = VAT(0.2, steps=2)(code, layout=kind.layout, divergence_at=divergence, generator=seeded())
    random = torch.randn(kind.layout.to_channels_first(code).shape, generator=seeded()).double()
    rows = []
    for i, (channels, factors) in enumerate(
        zip(samples_of(code, kind.layout), samples_of(factor, kind.layout), strict=True)
    ):
        d = random[i].reshape(len(channels), -1) * torch.stack(factors).reshape(len(channels), -1) ** 4
        d = (0.2 * torch.stack(channels).norm() * d / d.norm()).view_as(torch.stack(channels))
        rows.append([values + one for values, one in zip(channels, d, strict=True)])
    torch.testing.assert_close(change.apply(code), code_of(rows, code, kind.layout), rtol=1e-6, atol=1e-6)


def test_what_is_added_is_a_constant_and_gradients_pass_by() -> None:
    code = torch.randn(3, 4, 5, requires_grad=True)
    for transform in (FGSM(0.1), FGSM(0.1, norm="2"), VAT(0.1)):
        change = transform(code, torch.randn(3, 4, 5), divergence_at=lambda new: new.square().sum())
        (gradient,) = torch.autograd.grad(change.apply(code).sum(), code)
        assert (gradient == 1).all()


SAMPLES_ALONE: dict[str, LatentTransform] = {
    "AdvStyle": AdvStyle(0.3),
    "FGSM": FGSM(0.3),
    "FGSM, 2": FGSM(0.3, norm="2"),
    "FGSM, 3 steps": FGSM(0.3, steps=3),
}


@pytest.mark.parametrize("transform", SAMPLES_ALONE.values(), ids=SAMPLES_ALONE)
def test_a_sample_depends_on_itself_alone(transform: LatentTransform) -> None:
    code, saliency = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    weight = torch.randn(1, 3, 5)
    others = code.clone()
    others[1:] += 3
    first, second = (
        transform(one, saliency, loss_at=lambda new: (weight * new).sin().sum()).apply(one) for one in (code, others)
    )
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[0], code[0])


@pytest.mark.parametrize("transform", [MaxStyle(p=1), AdvStyle(steps=2), FGSM(steps=2), VAT()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_constant_codes_stay_finite(transform: LatentTransform, dtype: torch.dtype) -> None:
    for value in (0.0, 300.0):
        code = torch.full((3, 2, 4, 4), value, dtype=dtype, requires_grad=True)
        change = transform(
            code,
            torch.zeros_like(code),
            loss_at=lambda new: new.float().square().mean(),
            divergence_at=lambda new: new.float().mean() * 0,
        )
        changed = change.apply(code)
        assert changed.dtype == dtype
        assert changed.isfinite().all()
        (gradient,) = torch.autograd.grad(changed.float().sum(), code)
        assert gradient.isfinite().all()


def test_small_gradients_of_half_codes_are_climbed() -> None:
    code = torch.randn(2, 3, 4, generator=seeded()).half()
    change = FGSM(0.2, steps=2)(
        code, torch.zeros_like(code), loss_at=lambda new: (new * 1e-3).float().square().sum() * 1e-4
    )
    assert (change.apply(code) - code).abs().sum() > 0


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps must be a whole number, 0 or more; got -1"):
        MaxStyle(steps=-1)
    with pytest.raises(ValueError, match=r"steps must be a whole number, 1 or more; got 0"):
        VAT(steps=0)
    with pytest.raises(ValueError, match=r"lr must be a finite number, 0 or more; got -1"):
        MaxStyle(lr=-1)
    with pytest.raises(ValueError, match=r"radius must be 0 or more, and finite; got -1"):
        MaxStyle(radius=-1)
    with pytest.raises(ValueError, match=r"eps must be a finite number above 0; got 0"):
        MaxStyle(eps=0)
    with pytest.raises(ValueError, match=r"eps must be a finite number above 0; got 0"):
        AdvStyle(eps=0)
    with pytest.raises(ValueError, match=r"strength must be 0 or more, and finite; got -0.1"):
        FGSM(-0.1)
    with pytest.raises(ValueError, match=r"norm must be one of 'inf', '2'; got '1'"):
        FGSM(norm="1")
    with pytest.raises(ValueError, match=r"xi must be a finite number above 0; got 0"):
        VAT(xi=0)


def test_what_is_asked_for_follows_from_the_steps() -> None:
    assert MaxStyle().needs == ("loss_at",)
    assert MaxStyle(steps=0).needs == ()
    assert FGSM().needs == AdvStyle().needs == ("saliency",)
    assert FGSM(steps=2).needs == AdvStyle(steps=2).needs == ("saliency", "loss_at")
    assert FGSM(steps=0).needs == ()
    with pytest.raises(ValueError, match=r"VAT needs `divergence_at`, a callable that returns the divergence"):
        VAT()(torch.ones(2, 3, 4))
