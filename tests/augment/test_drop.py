"""DropBlock, ChannelDropout and Cutout against loops: centres, channels and boxes, one at a time."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor

from latentaug.augment.drop import ChannelDropout, Cutout, DropBlock
from latentaug.augment.masks import RandomChannelMask
from latentaug.layout import CHANNELS_FIRST, TOKENS
from tests.support.codes import KINDS, Kind, seeded
from tests.support.oracles import errors
from tests.support.oracles.drop import channel_dropout, clipped, cutout, drop_block, factor_by_loop, gamma_of

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
SHARED = pytest.mark.parametrize("shared", [True, False], ids=["shared", "of_each_channel"])


@EVERY_KIND
@SHARED
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("p", "block_size"), [(0.2, 3), (0.4, 4), (0.1, 99), (1.0, 1), (0.0, 3)])
def test_dropblock_agrees_with_a_loop(kind: Kind, p: float, block_size: int, shared: bool, rescale: bool) -> None:
    transform = DropBlock(p, block_size, shared=shared, rescale=rescale)
    expected = partial(drop_block, p=p, block_size=block_size, shared=shared, rescale=rescale)
    found = errors(transform, expected, kind)
    assert found.values < 1e-6  # the factor is float32
    assert found.gradients < 1e-6


def test_the_loop_of_dropblock_tells_its_options_apart() -> None:
    uniform = torch.rand(2, 1, 4, 4, generator=seeded())
    factor = factor_by_loop((2, 1, 6, 6), 0.2, 3, uniform, True)
    assert 0 < int((factor == 0).sum()) < factor.numel()
    assert not torch.equal(factor, factor_by_loop((2, 1, 6, 6), 0.4, 3, uniform, True))
    assert not torch.equal(factor, factor_by_loop((2, 1, 6, 6), 0.2, 3, uniform, False))
    assert clipped(7, (9, 6, 1, 3)) == [7, 5, 1, 3]
    assert gamma_of(0.1, [7, 7], (7, 7)) == pytest.approx(0.1)  # one block alone: it drops all, or nothing


@SHARED
def test_a_sample_s_kept_values_keep_its_sum(shared: bool) -> None:
    mask = DropBlock(0.3, 3, shared=shared)(torch.ones(16, 4, 9, 9), generator=seeded())
    for factor in mask.factor:
        assert float(factor.mean()) == pytest.approx(1)
    assert len(mask.factor.flatten(1).amax(1).unique()) > 5  # each by a number of its own


def expected_fraction(p: float, block_size: int, size: tuple[int, ...]) -> float:
    """The mean chance of a position to be dropped: that any centre whose block covers it is chosen."""
    block = clipped(block_size, size)
    gamma = gamma_of(p, block, size)
    total = 0.0
    for position in itertools.product(*map(range, size)):
        centres = [
            sum(first <= at < first + b for first in range(n - b + 1))
            for at, n, b in zip(position, size, block, strict=True)
        ]
        total += 1 - (1 - gamma) ** math.prod(centres)
    return total / math.prod(size)


def off_by(fractions: Tensor, expected: float) -> float:
    """How many standard errors the mean of independent fractions is from what is expected."""
    return float((fractions.mean() - expected).abs() / (fractions.std() / len(fractions) ** 0.5))


@pytest.mark.parametrize(("p", "block_size", "size"), [(0.1, 7, (20, 24)), (0.3, 3, (9, 8, 7)), (0.2, 5, (40,))])
def test_drops_slightly_less_than_p_by_as_much_as_blocks_overlap(
    p: float, block_size: int, size: tuple[int, ...]
) -> None:
    mask = DropBlock(p, block_size)(torch.ones(4000, 1, *size), generator=seeded())
    fractions = (mask.factor == 0).double().flatten(1).mean(1)
    expected = expected_fraction(p, block_size, size)
    assert 0.7 * p < expected < p
    assert off_by(fractions, expected) < 4
    assert off_by(fractions, expected_fraction(1.2 * p, block_size, size)) > 4


def test_a_pair_is_sampled_first_and_once_for_the_batch() -> None:
    generator = seeded()
    p = 0.1 + (0.5 - 0.1) * torch.rand((), generator=generator)
    uniform = torch.rand(8, 1, 6, 6, generator=generator)
    mask = DropBlock((0.1, 0.5), 3)(torch.ones(8, 2, 8, 8), generator=seeded())
    torch.testing.assert_close(mask.factor, factor_by_loop((8, 1, 8, 8), float(p), 3, uniform, True))


def test_a_sample_of_which_nothing_is_left_is_zero() -> None:
    mask = DropBlock(1.0, 3)(torch.ones(2, 1, 3, 3), generator=seeded())
    assert torch.equal(mask.apply(torch.ones(2, 1, 3, 3)), torch.zeros(2, 1, 3, 3))


def test_a_sample_does_not_depend_on_its_batch_mates() -> None:
    together = DropBlock(0.3, 3)(torch.ones(4, 2, 8, 8), generator=seeded()).factor
    alone = DropBlock(0.3, 3)(torch.ones(1, 2, 8, 8), generator=seeded()).factor
    assert torch.equal(together[:1], alone)
    other = DropBlock(0.3, 3)(torch.full((4, 2, 8, 8), 7.0), generator=seeded()).factor
    assert torch.equal(together, other)


def test_does_nothing_in_eval_mode(generator: torch.Generator) -> None:
    code = torch.randn(2, 3, 8, 8, generator=seeded())
    assert torch.equal(DropBlock(0.9).eval()(code, generator=generator).apply(code), code)
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 2, 1, 1), (3, 2, 1, 5), (0, 2, 5, 5)])
def test_small_and_empty_codes(shape: tuple[int, ...]) -> None:
    code = torch.ones(shape)
    mask = DropBlock(0.5)(code, generator=seeded())
    assert mask.apply(code).shape == shape
    assert mask.factor.isfinite().all()


def test_options_and_codes_out_of_range_are_refused() -> None:
    for block_size in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=r"block_size must be a whole number of positions, 1 or more; got"):
            DropBlock(block_size=block_size)
    with pytest.raises(ValueError, match=r"^p must be in \[0, 1\]; got 1\.5"):
        DropBlock(1.5)
    with pytest.raises(ValueError, match=r"code of one to three spatial axes; got shape \(1, 2, 3, 3, 3, 3\)"):
        DropBlock()(torch.ones(1, 2, 3, 3, 3, 3), layout=CHANNELS_FIRST)
    with pytest.raises(ValueError, match="Add a site axis"):
        DropBlock()(torch.ones(2, 3), layout=TOKENS)


# ChannelDropout ---------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("cls", [ChannelDropout, RandomChannelMask])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_channeldropout_agrees_with_a_loop(kind: Kind, cls: type[RandomChannelMask], p: float, rescale: bool) -> None:
    found = errors(cls(p, rescale=rescale), partial(channel_dropout, p=p, rescale=rescale), kind)
    assert found.values < 1e-6  # the factor is float32
    assert found.gradients < 1e-6


def test_the_loop_of_channeldropout_tells_its_options_apart() -> None:
    kind = KINDS["2-D"]
    assert errors(ChannelDropout(0.5), partial(channel_dropout, p=0.3), kind).values > 0.1
    assert errors(ChannelDropout(0.5), partial(channel_dropout, rescale=False), kind).values > 0.1


def test_channeldropout_drops_the_fraction_that_it_is_given_and_keeps_the_mean() -> None:
    factor = ChannelDropout(0.3)(torch.ones(100, 200, 2), generator=seeded()).factor
    assert abs(float((factor == 0).double().mean()) - 0.3) < 4 * math.sqrt(0.21 / 20000)
    assert abs(float(factor.double().mean()) - 1) < 4 * math.sqrt(0.21 / 20000) / 0.7


def test_channeldropout_does_nothing_in_eval_mode_where_the_mask_of_the_paper_does() -> None:
    code = torch.randn(2, 30, 4, generator=seeded())
    assert torch.equal(ChannelDropout().eval()(code, generator=seeded()).apply(code), code)
    assert not torch.equal(RandomChannelMask().eval()(code, generator=seeded()).apply(code), code)


# Cutout -----------------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("fill", ["zero", "mean", "noise"])
def test_cutout_agrees_with_a_loop(kind: Kind, fill: str) -> None:
    found = errors(Cutout(fill=fill), partial(cutout, fill=fill), kind)
    assert found.values < 1e-12
    assert found.gradients == 0


def test_the_loop_of_cutout_tells_its_options_apart() -> None:
    kind = KINDS["2-D"]
    params = Cutout(fill="noise")(kind.code(), generator=seeded()).params
    for name in params:
        other = params | {name: params[name].roll(1, 0)}
        found = errors(Cutout(fill="noise"), lambda *args, o=other: cutout(*args[:2], o, fill="noise"), kind)
        assert found.values > 0.1
    for fill in ("zero", "mean"):
        assert errors(Cutout(fill="noise"), partial(cutout, fill=fill), kind).values > 0.1
    assert errors(Cutout(fill="mean"), cutout, kind).values > 0.01


def test_cutout_s_sides_are_sampled_uniformly_for_each_sample_and_the_same_along_all_axes() -> None:
    boxes = Cutout()(torch.zeros(1000, 1, 400, 800), generator=seeded()).params["box"]
    sides = (boxes[:, 1] - boxes[:, 0]).double() / torch.tensor([400, 800])
    assert ((sides[:, 0] - sides[:, 1]).abs() <= 1 / 400).all()
    assert stats.kstest(sides[:, 1].numpy(), stats.uniform(0.25, 0.25).cdf).pvalue > 0.01
    fixed = Cutout(0.3)(torch.zeros(9, 1, 10, 20), generator=seeded()).params["box"]
    assert (fixed[:, 1] - fixed[:, 0]).tolist() == [[3, 6]] * 9


def test_cutout_changes_all_channels_of_its_box_and_nothing_else() -> None:
    code = torch.randn(3, 4, 9, 9, generator=seeded())
    change = Cutout(0.4)(code, generator=seeded(1))
    changed = change.apply(code)
    for i in range(3):
        gone = changed[i] == 0
        assert torch.equal(gone, gone[:1].expand_as(gone))
        assert int(gone[0].sum()) == 16
        assert torch.equal(changed[i][~gone], code[i][~gone])


def test_what_cutout_fills_in_carries_no_gradient() -> None:
    code = torch.randn(3, 4, 9, 9, generator=seeded(), requires_grad=True)
    for fill in ("zero", "mean", "noise"):
        change = Cutout(0.4, fill)(code, generator=seeded(1))
        (gradient,) = torch.autograd.grad(change.apply(code).sum(), code)
        assert torch.equal(gradient, (Cutout().transform(torch.ones_like(code), box=change.params["box"]) != 0).float())


def test_cutout_s_noise_is_each_channel_s_own() -> None:
    code = torch.randn(1, 2, 100, 100, generator=seeded()) * torch.tensor([1.0, 50.0]).view(1, 2, 1, 1) + 7
    inside = Cutout(1.0, "noise")(code, generator=seeded(1)).apply(code)
    for given, filled in zip(code[0], inside[0], strict=True):
        scaled = ((filled - given.mean()) / given.std()).flatten()
        assert stats.kstest(scaled.numpy(), "norm").pvalue > 0.01


def test_a_sample_s_box_does_not_ask_its_batch_mates() -> None:
    code = torch.randn(3, 4, 9, 9, generator=seeded())
    for fill in ("zero", "mean", "noise"):
        change = Cutout(fill=fill)(code, generator=seeded(1))
        others = code.clone()
        others[1:] = 9
        assert torch.equal(change.apply(others)[0], change.apply(code)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cutout_fills_half_precision_from_float32(dtype: torch.dtype) -> None:
    code = (torch.randn(2, 1, 300, 300, generator=seeded()) + 300).to(dtype)  # whose sum is no float16
    change = Cutout(fill="mean")(code, generator=seeded())
    assert torch.equal(change.apply(code), change.apply(code.float()).to(dtype))
    assert change.apply(code).isfinite().all()


@pytest.mark.parametrize("fill", ["zero", "mean", "noise"])
@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 2, 1, 1), (3, 2, 4, 4)])
def test_constant_codes_and_single_positions_stay_finite(shape: tuple[int, ...], fill: str) -> None:
    code = torch.full(shape, 5.0, requires_grad=True)
    changed = Cutout(fill=fill)(code, generator=seeded()).apply(code)
    (gradient,) = torch.autograd.grad(changed.square().sum(), code)
    assert gradient.isfinite().all()
    if fill != "zero":
        assert torch.equal(changed, code)


def test_options_of_cutout_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fill must be one of 'zero', 'mean', 'noise'; got 'one'"):
        Cutout(fill="one")
    with pytest.raises(ValueError, match=r"side must be in \[0, 1\]; got 7"):
        Cutout(7)
