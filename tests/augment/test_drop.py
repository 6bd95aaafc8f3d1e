"""DropBlock against a loop over the centres of its blocks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from latentaug.augment.drop import DropBlock
from latentaug.layout import CHANNELS_FIRST, TOKENS
from tests.support.codes import KINDS, Kind, code_of, samples_of, seeded

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
SHARED = pytest.mark.parametrize("shared", [True, False], ids=["shared", "of_each_channel"])


def clipped(block_size: int, size: tuple[int, ...]) -> list[int]:
    """The largest odd number that is neither above the block's size nor above the code's."""
    return [max(b for b in range(1, min(block_size, n) + 1) if b % 2) for n in size]


def gamma_of(p: float, block: list[int], size: tuple[int, ...]) -> float:
    """The chance of a centre: Ghiasi et al., equation 1, along each axis."""
    chance = p
    for b, n in zip(block, size, strict=True):
        chance *= n / b / (n - b + 1)
    return chance


def factor_by_loop(shape: tuple[int, ...], p: float, block_size: int, uniform: Tensor, rescale: bool) -> Tensor:
    """The factor [B, 1 or C, *S] for uniform numbers at all centres where blocks fit."""
    batch, channels, *size = shape
    block = clipped(block_size, tuple(size))
    gamma = torch.tensor(gamma_of(p, block, tuple(size)), dtype=torch.float32)
    factor = torch.ones(batch, channels, *size)
    for sample, channel in itertools.product(range(batch), range(channels)):
        for corner in itertools.product(*(range(n - b + 1) for n, b in zip(size, block, strict=True))):
            if uniform[(sample, channel, *corner)] < gamma:
                box = tuple(slice(first, first + b) for first, b in zip(corner, block, strict=True))
                factor[(sample, channel, *box)] = 0
        if rescale and channel == channels - 1:
            kept = int(factor[sample].sum())
            factor[sample] *= factor[sample].numel() / max(kept, 1)
    return factor


@EVERY_KIND
@SHARED
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("p", "block_size"), [(0.2, 3), (0.4, 4), (0.1, 99), (1.0, 1), (0.0, 3)])
def test_agrees_with_a_loop(kind: Kind, p: float, block_size: int, shared: bool, rescale: bool) -> None:
    code = kind.code(dtype=torch.float32)
    samples = samples_of(code, kind.layout)
    size = tuple(samples[0][0].shape)
    centres = [n - b + 1 for n, b in zip(size, clipped(block_size, size), strict=True)]
    channels = 1 if shared else 6
    uniform = torch.rand(4, channels, *centres, generator=seeded())
    expected = factor_by_loop((4, channels, *size), p, block_size, uniform, rescale)
    mask = DropBlock(p, block_size, shared=shared, rescale=rescale)(code, layout=kind.layout, generator=seeded())
    dropped = [
        [values * expected[i, 0 if shared else c] for c, values in enumerate(channels)]
        for i, channels in enumerate(samples)
    ]
    torch.testing.assert_close(mask.apply(code), code_of(dropped, code, kind.layout))


def test_the_loop_tells_its_options_apart() -> None:
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
