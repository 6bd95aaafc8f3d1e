"""What holds for every mask, whatever the code, the options and the seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentaug.augment.compose import Compose, OneOf, RandomApply
from latentaug.augment.masks import Masker, RandomChannelMask, TargetedChannelMask, TargetedSpatialMask, top_mask
from latentaug.layout import Layout

# Signed scores may cancel to nothing; that this is said aloud is tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:.*all zero or not finite:UserWarning")

shares = st.floats(0, 1, width=32)
ranges = shares | st.tuples(shares, shares).map(lambda pair: (min(pair), max(pair)))
halves = st.just(0) | st.just((0, 0.5)) | st.floats(0, 0.5, width=32)
scores = st.sampled_from(["signed", "magnitude", "harm"])
seeds = st.integers(0, 2**32)
kinds = st.sampled_from([TargetedChannelMask, TargetedSpatialMask])
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).flatmap(
    lambda sites: st.tuples(st.integers(1, 3), st.integers(1, 9)).map(lambda head: (*head, *sites))
)
targeted = st.builds(lambda kind, p, a, s: kind(p, a, score=s), kinds, ranges, ranges, scores)
dropout = st.builds(lambda p, rescale: RandomChannelMask(p, rescale=rescale), ranges, st.booleans())
maskers = st.recursive(
    targeted | dropout,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(Compose)
        | st.lists(inner, min_size=1, max_size=3).map(OneOf)
        | st.builds(RandomApply, inner, shares)
    ),
    max_leaves=4,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def saliency_like(shape: tuple[int, ...], seed: int) -> Tensor:
    """Entries that are whole numbers: their sums are exact in any order, and in bfloat16."""
    return torch.randint(-50, 50, shape, generator=seeded(seed)).float() + 0.5


def distinct_scores(rows: int, n: int, seed: int) -> Tensor:
    """Every row a shuffle of n different numbers, none of them zero."""
    return torch.stack([torch.randperm(n, generator=seeded(seed + row)) - n / 3 + 0.1 for row in range(rows)])


@given(kinds, ranges, halves, shapes, seeds)
def test_a_factor_is_one_or_what_annealing_says(kind: type, p: object, a: object, shape: tuple, seed: int) -> None:
    factor = kind(p, a)(torch.ones(shape), saliency_like(shape, seed), generator=seeded(seed)).factor
    assert ((factor == 1) | ((factor >= 0) & (factor <= 0.5))).all()


@given(shares, st.integers(1, 3), st.integers(1, 40), seeds)
def test_without_ties_exactly_k_are_masked_and_they_are_the_highest(p: float, rows: int, n: int, seed: int) -> None:
    score = distinct_scores(rows, n, seed)
    masked = top_mask(score, p, 0) == 0
    assert masked.sum(1).tolist() == [int(n * p)] * rows
    for row, hit in zip(score, masked, strict=True):
        assert not hit.any() or hit.all() or row[hit].min() > row[~hit].max()


@given(st.floats(-1e3, 1e3, width=32), st.floats(0, 1, exclude_max=True), st.integers(1, 40))
def test_equal_scores_mask_nothing(value: float, p: float, n: int) -> None:
    assert torch.equal(top_mask(torch.full((2, n), value), p, 0), torch.ones(2, n))


@given(ranges, ranges, shapes, kinds, seeds)
def test_saliency_of_zero_masks_nothing(p: object, a: object, shape: tuple, kind: type, seed: int) -> None:
    score = torch.zeros(shape[:2])
    assert torch.equal(top_mask(score, p, a, generator=seeded(seed)), torch.ones(shape[:2]))


@given(kinds, ranges, shapes, seeds)
def test_a_percentile_of_zero_is_the_identity(kind: type, a: object, shape: tuple, seed: int) -> None:
    code = torch.randn(shape, generator=seeded(seed))
    assert torch.equal(kind(0, a)(code, saliency_like(shape, seed)).apply(code), code)


@given(targeted, seeds)
def test_an_annealing_of_one_is_the_identity(masker: TargetedChannelMask, seed: int) -> None:
    code = torch.randn((2, 4, 6), generator=seeded(seed))
    masker.annealing = 1.0
    assert torch.equal(masker(code, saliency_like((2, 4, 6), seed), generator=seeded(seed)).apply(code), code)


@given(maskers, shapes, seeds, st.data())
def test_layouts_commute_with_masking(masker: Masker, shape: tuple, seed: int, data: st.DataObject) -> None:
    channel_dim = data.draw(st.sampled_from([d for d in range(-len(shape) + 1, len(shape)) if d]))
    prefix = data.draw(st.integers(0, 2)) if len(shape) == 3 and channel_dim in (-1, 2) else 0
    layout = Layout(channel_dim, prefix)
    code, saliency = torch.randn(shape, generator=seeded(seed)), saliency_like(shape, seed)
    expected = masker(code, saliency, generator=seeded(seed)).apply(code)

    def lay_out(first: Tensor) -> Tensor:
        there = first.movedim(1, channel_dim)
        return torch.cat([torch.full_like(there[:, :1], 9).expand(-1, prefix, *there.shape[2:]), there], 1)

    masked = masker(lay_out(code), lay_out(saliency), layout=layout, generator=seeded(seed)).apply(lay_out(code))
    assert torch.equal(masked, lay_out(expected))


@given(kinds, shares, shares, scores, shapes, seeds)
def test_every_sample_is_masked_as_if_alone(
    kind: type, p: float, a: float, score: str, shape: tuple, seed: int
) -> None:
    masker, code, saliency = kind(p, a, score=score), torch.ones(shape), saliency_like(shape, seed)
    together = masker(code, saliency).factor
    alone = [masker(code[i : i + 1], saliency[i : i + 1]).factor for i in range(shape[0])]
    assert torch.equal(together, torch.cat(alone))


@given(maskers, shapes, seeds, st.sampled_from([torch.float16, torch.bfloat16, torch.float64]))
def test_the_dtype_changes_no_mask(masker: Masker, shape: tuple, seed: int, dtype: torch.dtype) -> None:
    """Of numbers that every dtype holds: rounding a code is another code, and "harm" looks at it."""
    code, saliency = (8 * torch.randn(shape, generator=seeded(seed))).round() / 8, saliency_like(shape, seed)
    expected = masker(code, saliency, generator=seeded(seed)).factor
    assert torch.equal(masker(code.to(dtype), saliency.to(dtype), generator=seeded(seed)).factor, expected)


@given(maskers, shapes, seeds)
def test_a_seed_is_a_mask_and_leaves_the_global_generator_alone(masker: Masker, shape: tuple, seed: int) -> None:
    code, saliency = torch.randn(shape, generator=seeded(seed)), saliency_like(shape, seed)
    before = torch.get_rng_state()
    first = masker(code, saliency, generator=seeded(seed)).factor
    second = masker(code, saliency, generator=seeded(seed)).factor
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(maskers, min_size=1, max_size=3), shapes, seeds)
def test_a_composition_is_the_product_of_its_parts(parts: list[Masker], shape: tuple, seed: int) -> None:
    code, saliency = torch.randn(shape, generator=seeded(seed)), saliency_like(shape, seed)
    generator, product = seeded(seed), torch.ones(())
    for part in parts:
        product = product * part(code, saliency, generator=generator).factor
    assert torch.equal(Compose(parts)(code, saliency, generator=seeded(seed)).factor, product)


@given(maskers, shapes, seeds)
def test_the_factor_broadcasts_and_carries_no_gradient(masker: Masker, shape: tuple, seed: int) -> None:
    code = torch.randn(shape, generator=seeded(seed)).requires_grad_()
    saliency = saliency_like(shape, seed).requires_grad_()
    mask = masker(code, saliency, generator=seeded(seed))
    assert not mask.factor.requires_grad
    assert torch.broadcast_shapes(mask.factor.shape, shape) == shape
    assert torch.isfinite(mask.factor).all()
    mask.apply(code).sum().backward()
    assert torch.equal(code.grad, mask.factor.expand(shape))
