"""RSC and TargetDrop against loops over samples, channels and positions."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.augment.masks import Masker
from latentaug.augment.targeted_drop import RSC, TargetDrop
from latentaug.tap.latent_tap import LatentTap
from tests.support.codes import KINDS, Kind, samples_of, seeded
from tests.support.oracles import errors, saliency_of
from tests.support.oracles.drop import rsc, rsc_factor, target_drop

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
BOTH = pytest.mark.parametrize("cls", [RSC, TargetDrop])
TWO_D = KINDS["2-D"]


# RSC --------------------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("axis", ["random", "channel", "spatial"])
def test_rsc_agrees_with_a_loop(kind: Kind, axis: str) -> None:
    found = errors(RSC(axis=axis), rsc, kind)
    assert found.values == 0
    assert found.gradients == 0


@pytest.mark.parametrize("axis", ["channel", "spatial"])
def test_the_loop_of_rsc_tells_its_options_apart(axis: str) -> None:
    def wrong(code: Tensor, kind: Kind, params: dict[str, Any]) -> Tensor:
        return rsc(code, kind, {"factor": torch.ones(4, 1 if axis == "channel" else 6, 1, 1)})

    assert errors(RSC(axis=axis), wrong, TWO_D).values > 0.1
    assert errors(RSC(0.5, axis=axis), rsc, TWO_D).values > 0.1
    sample, saliency = (samples_of(one, TWO_D.layout)[0] for one in (TWO_D.code(), saliency_of(TWO_D)))
    opposite = rsc_factor(sample, [-one for one in saliency], axis == "channel")
    assert not torch.equal(opposite, rsc_factor(sample, saliency, axis == "channel"))


def test_rsc_drops_what_the_right_answer_needs() -> None:
    """A loss that falls by what channel 2, and position 3, say: they go, and the loss rises."""
    code = torch.rand(2, 4, 5, generator=seeded()) + 1
    worth = torch.full((4, 5), 0.1)
    worth[2] += 1

    def loss_of(code: Tensor) -> Tensor:
        return -(code * worth).mean()

    leaf = code.clone().requires_grad_()
    (saliency,) = torch.autograd.grad(loss_of(leaf), leaf)
    mask = RSC(0.25, axis="channel")(code, saliency, generator=seeded())
    assert mask.factor.flatten(1).tolist() == [[1, 1, 0, 1]] * 2
    assert loss_of(mask.apply(code)) > loss_of(code)
    code[:, 2, 3] = 9
    spatial = RSC(0.2, axis="spatial")(code, saliency, generator=seeded())
    assert spatial.factor.flatten(1).tolist() == [[1, 1, 1, 0, 1]] * 2
    assert loss_of(spatial.apply(code)) > loss_of(code)


def test_rsc_s_axis_is_sampled_once_per_batch_each_as_likely() -> None:
    code, generator = TWO_D.code(), seeded()
    shapes = [tuple(RSC()(code, saliency_of(TWO_D), generator=generator).factor.shape) for _ in range(600)]
    assert set(shapes) == {(4, 6, 1, 1), (4, 1, 5, 7)}
    assert abs(shapes.count((4, 6, 1, 1)) - 300) < 4 * math.sqrt(150)


@pytest.mark.parametrize(("samples", "changed"), [(0.0, 0), (0.25, 1), (1 / 3, 2), (0.5, 2), (0.51, 3), (1.0, 4)])
@pytest.mark.parametrize("axis", ["channel", "spatial"])
@EVERY_KIND
def test_rsc_keeps_the_masks_of_the_samples_whose_loss_they_raise_most(
    kind: Kind, axis: str, samples: float, changed: int
) -> None:
    code, saliency, weight = kind.code(), saliency_of(kind), kind.code(seed=3)

    def loss_of_each(code: Tensor) -> Tensor:
        return (code * weight).square().flatten(1).mean(1)

    transform = RSC(axis=axis, samples=samples)
    mask = transform(code, saliency, layout=kind.layout, loss_at=lambda code: loss_of_each(code).mean())
    everybody = RSC(axis=axis)(code, saliency, layout=kind.layout)
    rises = (loss_of_each(everybody.apply(code)) - loss_of_each(code)).tolist()
    chosen = sorted(range(4), key=lambda i: -rises[i])[:changed]
    for i in range(4):
        assert torch.equal(mask.apply(code)[i], everybody.apply(code)[i] if i in chosen else code[i])
    listed = {"layout": kind.layout, "loss_at": lambda code: loss_of_each(code).mean(0, keepdim=True)}
    assert torch.equal(transform(code, saliency, **listed).apply(code), mask.apply(code))


def test_rsc_asks_for_one_loss_a_sample_and_for_none_without_being_told() -> None:
    seen: list[Tensor] = []

    def loss_at(code: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        seen.append(code)
        return code.mean()

    code = TWO_D.code()
    RSC()(code, saliency_of(TWO_D), loss_at=loss_at)
    assert not seen
    RSC(samples=0.5)(code, saliency_of(TWO_D), loss_at=loss_at)
    assert [[torch.equal(one[i], code[i]) for i in range(4)].count(False) for one in seen] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"RSC needs `loss_at`, a callable"):
        RSC(samples=0.5)(code, saliency_of(TWO_D))


def test_rsc_s_samples_are_chosen_through_a_tap() -> None:
    """By replays that leave no trace: no gradient, and no running statistic."""
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.BatchNorm2d(3))
    images, labels = torch.randn(4, 1, 9, 9, generator=seeded()), torch.randint(3, (4, 5, 5), generator=seeded(1))

    def objective(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels)

    with LatentTap(model, "1") as tap:
        model(images)
        before = model[3].running_mean.clone()
        mask = tap.draw(RSC(axis="channel", samples=0.5), objective=objective, generator=seeded())
        loss = objective(tap.replay(mask))
    assert torch.equal(model[3].running_mean, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (mask.factor == 0).flatten(1).any(1).sum() == 2
    loss.backward()


# TargetDrop -------------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("score", ["magnitude", "signed", "harm"])
@pytest.mark.parametrize("options", [{}, {"fraction": 0.5, "block_size": 2}, {"rescale": False}, {"fraction": 0.0}])
def test_targetdrop_agrees_with_a_loop(kind: Kind, score: str, options: dict[str, Any]) -> None:
    found = errors(TargetDrop(score=score, **options), partial(target_drop, score=score, **options), kind)
    assert found.values < 1e-6  # the factor is float32
    assert found.gradients < 1e-6


def test_the_loop_of_targetdrop_tells_its_options_apart() -> None:
    transform = TargetDrop(0.3, 3, score="magnitude")
    right = {"fraction": 0.5, "block_size": 3, "score": "magnitude", "rescale": True}
    assert errors(TargetDrop(0.5, 3), partial(target_drop, **right), TWO_D).values < 1e-6
    for wrong in ({"fraction": 0.3}, {"block_size": 5}, {"score": "harm"}, {"rescale": False}):
        assert errors(TargetDrop(0.5, 3), partial(target_drop, **right | wrong), TWO_D).values > 0.01
    assert transform(TWO_D.code(), saliency_of(TWO_D)).factor.shape == TWO_D.shape


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 1), (0.01, 1), (0.049, 1), (0.1, 2), (0.15, 3), (1.0, 20)])
def test_at_least_one_channel_is_hit(fraction: float, expected: int) -> None:
    code, saliency = torch.ones(3, 20, 8, 8), torch.randn(3, 20, 8, 8, generator=seeded())
    factor = TargetDrop(fraction, 3)(code, saliency).factor
    assert (factor == 0).flatten(2).any(2).sum(1).tolist() == [expected] * 3


def test_a_block_lies_around_the_peak_and_the_rest_makes_up_for_it() -> None:
    code, saliency = torch.ones(1, 2, 7, 7), torch.full((1, 2, 7, 7), 0.01)
    saliency[0, 1, 2, 6] = -5
    factor = TargetDrop(0.5, 3)(code, saliency).factor
    assert torch.equal(factor[0, 0], torch.ones(7, 7))
    gone = torch.zeros(7, 7, dtype=torch.bool)
    gone[1:4, 5:7] = True  # cut off at the border
    assert torch.equal(factor[0, 1] == 0, gone)
    torch.testing.assert_close(factor[0, 1][~gone], torch.full((43,), 49 / 43))


def test_channels_of_equal_score_are_taken_in_their_order() -> None:
    factor = TargetDrop(0.5, 1)(torch.ones(1, 4, 3), torch.ones(1, 4, 3)).factor
    assert (factor == 0).any(2).tolist() == [[True, True, False, False]]


def test_a_channel_of_which_nothing_is_left_is_zero() -> None:
    code = torch.ones(2, 3, 1)
    change = TargetDrop(1.0)(code, torch.randn(2, 3, 1, generator=seeded()))
    assert not change.apply(code).any()


def test_targetdrop_s_fraction_is_sampled_once_per_batch() -> None:
    code, saliency, generator = torch.ones(3, 40, 4), torch.randn(3, 40, 4, generator=seeded()), seeded()
    counts = set()
    for _ in range(60):
        factor = TargetDrop((0.1, 0.5), 1)(code, saliency, generator=generator).factor
        (count,) = set((factor == 0).any(2).sum(1).tolist())
        counts.add(count)
    assert min(counts) < 7
    assert max(counts) > 16
    assert counts <= set(range(4, 21))


# Both -------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_sample_is_masked_as_if_alone(cls: type[Masker]) -> None:
    code, saliency = TWO_D.code(), saliency_of(TWO_D)
    together = cls()(code, saliency, generator=seeded()).factor
    alone = [cls()(code[i : i + 1], saliency[i : i + 1], generator=seeded()).factor for i in range(4)]
    assert torch.equal(together, torch.cat(alone))


@BOTH
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_sample_without_a_saliency_stays_as_it_is_and_that_is_said_once(cls: type[Masker], value: float) -> None:
    code, saliency, transform = TWO_D.code(), saliency_of(TWO_D), cls()
    saliency[1] = value
    with pytest.warns(UserWarning, match=f"{cls.__name__} leaves samples unmasked whose saliency is all zero or not"):
        changed = transform(code, saliency, generator=seeded()).apply(code)
    assert [torch.equal(changed[i], code[i]) for i in range(4)] == [False, True, False, False]
    transform(code, saliency, generator=seeded())


@BOTH
def test_neither_acts_in_eval_mode_nor_asks_then(cls: type[Masker]) -> None:
    code = TWO_D.code(dtype=torch.float32)
    assert torch.equal(cls().eval()(code, lambda: 1 / 0).apply(code), code)


@BOTH
def test_a_saliency_is_needed(cls: type[Masker]) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__} needs `saliency` shaped like the code"):
        cls()(TWO_D.code())


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_float32(cls: type[Masker], dtype: torch.dtype) -> None:
    code, saliency = TWO_D.code().to(dtype), (1e-6 * saliency_of(TWO_D)).to(dtype)
    factor = cls()(code, saliency, generator=seeded()).factor
    assert torch.equal(factor, cls()(code.float(), saliency.float(), generator=seeded()).factor)
    assert (factor == 0).any()


def test_options_and_codes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\]; got 33\. Did you mean 0\.33\?"):
        RSC(33)
    with pytest.raises(ValueError, match=r"axis must be one of 'random', 'channel', 'spatial'; got 'both'"):
        RSC(axis="both")
    with pytest.raises(ValueError, match=r"samples must be in \[0, 1\]; got 2"):
        RSC(samples=2)
    with pytest.raises(ValueError, match=r"score must be one of 'signed', 'magnitude', 'harm'; got 'gradient'"):
        TargetDrop(score="gradient")
    with pytest.raises(ValueError, match=r"block_size must be a whole number of positions, 1 or more; got 0"):
        TargetDrop(block_size=0)
    with pytest.raises(ValueError, match=r"TargetDrop needs a code of one to three spatial axes; got shape"):
        TargetDrop()(torch.ones(1, 2, 3, 3, 3, 3), torch.ones(1, 2, 3, 3, 3, 3))
