"""The three maskers and `top_mask`, against slow loops."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from latentaug.augment.masks import (
    LatentMask,
    Masker,
    RandomChannelMask,
    TargetedChannelMask,
    TargetedSpatialMask,
    top_mask,
)
from latentaug.layout import CHANNELS_FIRST, Layout

CODES = [(2, 8, 15), (2, 8, 3, 5), (2, 8, 2, 3, 4)]
TARGETED = [TargetedChannelMask, TargetedSpatialMask]


def top_mask_by_loop(score: Tensor, k: int, damped: float) -> list[list[float]]:
    """The paper's rule, one row and one entry at a time."""
    rows = []
    for row in score.tolist():
        threshold = [*sorted(row, reverse=True), -math.inf][k]
        rows.append([damped if value > threshold else 1.0 for value in row])
    return rows


VALUES: dict[str, Callable[[float, float], float]] = {
    "signed": lambda gradient, code: gradient,
    "magnitude": lambda gradient, code: abs(gradient),
    "harm": lambda gradient, code: -gradient * code,
}


def scores_by_loop(saliency: Tensor, code: Tensor, spatial: bool, score: str) -> Tensor:
    """The score of every channel, or site, of a saliency [B, C, *S]."""
    rows = []
    for gradients, values in zip(saliency.flatten(2), code.flatten(2), strict=True):
        pairs = torch.stack([gradients, values], dim=-1)
        entries = pairs.transpose(0, 1) if spatial else pairs
        rows.append([sum(VALUES[score](*pair) for pair in entry.tolist()) / len(entry) for entry in entries])
    return torch.tensor(rows)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# top_mask ---------------------------------------------------------------------------------------------------------


def test_top_mask_masks_the_k_highest_of_each_row() -> None:
    score = torch.tensor([[0.3, 0.9, -2.0, 0.5], [4.0, 3.0, 2.0, 1.0]])
    assert top_mask(score, 0.5, 0).tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]
    assert top_mask(score, 0.25, 0.5).tolist() == [[1, 0.5, 1, 1], [0.5, 1, 1, 1]]


def test_the_loop_it_is_checked_against_tells_right_from_wrong() -> None:
    score = torch.tensor([[0.3, 0.9, -2.0, 0.5]])
    assert top_mask_by_loop(score, 2, 0.0) == [[1, 0, 1, 0]]
    assert top_mask_by_loop(-score, 2, 0.0) != [[1, 0, 1, 0]]
    assert top_mask_by_loop(score, 1, 0.0) != [[1, 0, 1, 0]]


@pytest.mark.parametrize("percentile", [0, 0.05, 1 / 3, 0.5, 0.99, 1])
def test_top_mask_agrees_with_a_loop(percentile: float) -> None:
    score = normal(3, 20)
    assert top_mask(score, percentile, 0.25).tolist() == top_mask_by_loop(score, int(20 * percentile), 0.25)


def test_ties_at_the_threshold_stay() -> None:
    assert top_mask(torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]]), 0.4, 0).tolist() == [[0, 1, 1, 1, 1]]


@pytest.mark.parametrize("percentile", [0, 0.5, 0.99])
def test_equal_scores_mask_nothing(percentile: float) -> None:
    assert torch.equal(top_mask(torch.full((2, 6), 7.0), percentile, 0), torch.ones(2, 6))


def test_a_large_negative_score_is_not_salient() -> None:
    assert top_mask(torch.tensor([[-9.0, 1.0]]), 0.5, 0).tolist() == [[1, 0]]


def test_a_percentile_of_one_masks_all() -> None:
    assert top_mask(torch.tensor([[2.0, 2.0, -5.0]]), 1, 0).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("percentile", [0.5, 1.0])
def test_a_row_that_is_not_finite_or_all_zero_is_left_alone(bad: float, percentile: float) -> None:
    score = torch.tensor([[1.0, 2.0, 3.0, bad], [0.0, 0.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
    mask = top_mask(score, percentile, 0)
    assert mask[:2].tolist() == [[1.0] * 4] * 2
    assert (mask[2] == 0).sum() == int(4 * percentile)


def test_a_fixed_share_is_floored_in_python_and_a_drawn_one_in_float32() -> None:
    score = torch.arange(100.0).view(1, 100)
    assert int(100 * 0.29) == 28
    assert (top_mask(score, 0.29, 0) == 0).sum() == 28
    assert (top_mask(score, torch.tensor(0.29), 0) == 0).sum() == 29
    assert (top_mask(score, torch.tensor(0.29, dtype=torch.float64), 0) == 0).sum() == 29
    assert (top_mask(score, (0.29, 0.29), 0) == 0).sum() == 29


def test_a_share_drawn_up_to_one_can_mask_all() -> None:
    assert (top_mask(normal(2, 5), (1.0, 1.0), 0) == 0).all()


def test_top_mask_draws_the_percentile_first_and_once_for_the_batch(generator: torch.Generator) -> None:
    score = normal(4, 1000)
    share = 0.2 + (0.8 - 0.2) * torch.rand((), generator=torch.Generator().manual_seed(0))
    mask = top_mask(score, (0.2, 0.8), 0, generator=generator)
    assert (mask == 0).sum(1).tolist() == [int(1000 * share)] * 4


def test_top_mask_draws_the_annealing_for_every_masked_entry(generator: torch.Generator) -> None:
    mask = top_mask(normal(4, 1000, seed=1), 0.5, (0.1, 0.3), generator=generator)
    damped = mask[mask != 1]
    assert len(damped) == 2000
    assert len(damped.unique()) > 1900  # float32 may repeat a few
    assert damped.min() >= 0.1
    assert damped.max() <= 0.3
    assert damped.mean().item() == pytest.approx(0.2, abs=0.01)


def test_top_mask_is_float32_whatever_the_score() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert top_mask(normal(2, 6).to(dtype), 0.5, 0.5).dtype == torch.float32


def test_top_mask_refuses_scores_of_another_shape_or_kind() -> None:
    with pytest.raises(ValueError, match=r"`score` of shape \[B, n\]; got \(2, 3, 4\)"):
        top_mask(torch.zeros(2, 3, 4), 0.5, 0)
    with pytest.raises(TypeError, match=r"floating-point `score`; got torch.int64. Pass score.float\(\)"):
        top_mask(torch.zeros(2, 3, dtype=torch.int64), 0.5, 0)


def test_top_mask_refuses_shares_outside_the_range() -> None:
    with pytest.raises(ValueError, match=r"percentile must be in \[0, 1\]; got 1\.5\.$"):
        top_mask(torch.zeros(2, 3), 1.5, 0)
    with pytest.raises(ValueError, match=r"annealing must be in \[0, 1\]; got -1\."):
        top_mask(torch.zeros(2, 3), 0.5, (-1, 0))


# Targeted masks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", CODES)
@pytest.mark.parametrize("score", VALUES)
@pytest.mark.parametrize("masker", TARGETED)
def test_targeted_masks_agree_with_a_loop(masker: type, score: str, shape: tuple[int, ...]) -> None:
    code, saliency = normal(*shape), normal(*shape, seed=1)
    spatial = masker is TargetedSpatialMask
    expected = scores_by_loop(saliency, code, spatial, score)
    factor = masker(0.4, 0, score=score)(code, saliency).factor
    assert factor.shape == ((2, 1, *shape[2:]) if spatial else (2, 8, *[1] * len(shape[2:])))
    assert factor.flatten(1).tolist() == top_mask_by_loop(expected, int(expected.shape[1] * 0.4), 0.0)


def test_the_loop_for_scores_tells_its_options_apart() -> None:
    saliency = torch.tensor([[[1.0, -3.0], [2.0, 2.0]]])
    code = torch.tensor([[[4.0, 0.0], [0.0, 1.0]]])
    assert scores_by_loop(saliency, code, spatial=False, score="signed").tolist() == [[-1, 2]]
    assert scores_by_loop(saliency, code, spatial=False, score="magnitude").tolist() == [[2, 2]]
    assert scores_by_loop(saliency, code, spatial=False, score="harm").tolist() == [[-2, -1]]
    assert scores_by_loop(saliency, code, spatial=True, score="signed").tolist() == [[1.5, -0.5]]


@pytest.mark.parametrize("masker", TARGETED)
def test_harm_is_what_a_mask_of_zero_adds_to_a_linear_loss(masker: type) -> None:
    code, weight = normal(1, 8, 5).requires_grad_(), normal(1, 8, 5, seed=1)
    (saliency,) = torch.autograd.grad((code * weight).sum(), code)
    added = -(code * weight).detach().sum(1 if masker is TargetedSpatialMask else 2).flatten()
    factor = masker(0.4, 0, score="harm")(code, saliency).factor
    masked = factor.flatten() == 0
    assert masked.sum() == int(0.4 * len(masked))
    assert not factor.requires_grad
    assert added[masked].min() > added[~masked].max()


@pytest.mark.parametrize("masker", TARGETED)
def test_harm_does_not_underflow_in_half_precision(masker: type) -> None:
    saliency, code = torch.full((1, 4, 4), -6e-8, dtype=torch.float16), torch.full((1, 4, 4), 1e-3).half()
    saliency[0, 1], saliency[0, :, 1] = -1.2e-7, -1.2e-7
    factor = masker(0.25, 0, score="harm")(code, saliency).factor
    assert (factor == 0).flatten().tolist() == [False, True, False, False]


@pytest.mark.parametrize("masker", TARGETED)
def test_mean_of_magnitudes_is_not_magnitude_of_the_mean(masker: type) -> None:
    saliency = torch.tensor([[[5.0, -5.0], [1.0, -1.0]]])  # every channel's mean is zero
    if masker is TargetedSpatialMask:
        saliency = saliency.mT
    factor = masker(0.5, 0, score="magnitude")(torch.ones(1, 2, 2), saliency).factor
    assert factor.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("masker", TARGETED)
def test_half_precision_saliency_is_averaged_in_float32(masker: type) -> None:
    # Two entries that differ in the last bit of one of 64 summands: in float16 their means tie.
    saliency = torch.full((1, 2, 64), 4e-5, dtype=torch.float16)
    saliency[0, 1, 0] = torch.nextafter(saliency[0, 1, 0], torch.tensor(1.0, dtype=torch.float16))
    if masker is TargetedSpatialMask:
        saliency = saliency.mT
    dims = 1 if masker is TargetedSpatialMask else 2
    in_half = saliency.mean(dims)
    assert in_half[0, 0] == in_half[0, 1]
    factor = masker(0.5, 0)(torch.ones(saliency.shape, dtype=torch.float16), saliency).factor
    assert factor.flatten().tolist() == [1, 0]


@pytest.mark.parametrize("masker", TARGETED)
def test_float64_saliency_is_ranked_in_float64(masker: type) -> None:
    saliency = torch.tensor([[[1.0], [1.0 + 1e-12]]], dtype=torch.float64)
    if masker is TargetedSpatialMask:
        saliency = saliency.mT
    assert masker(0.5, 0)(saliency, saliency).factor.flatten().tolist() == [1, 0]


@pytest.mark.parametrize("masker", TARGETED)
def test_the_paper_s_defaults_are_soft_and_mask_at_most_half(masker: type) -> None:
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        factor = masker()(normal(2, 64, 8, 8), normal(2, 64, 8, 8, seed=seed), generator=g).factor.flatten(1)
        damped = factor != 1
        assert (damped.sum(1) == damped[0].sum()).all()
        assert damped[0].sum() <= 32
        assert ((factor[damped] >= 0) & (factor[damped] <= 0.5)).all()


@pytest.mark.parametrize("masker", TARGETED)
def test_a_layout_changes_where_the_axes_are_and_nothing_else(masker: type, code: Tensor, layout: Layout) -> None:
    saliency = torch.randn(code.shape, generator=torch.Generator().manual_seed(2))
    mask = masker(0.4, 0)(code, saliency, layout=layout)
    view = layout.to_channels_first
    plain = masker(0.4, 0)(view(code).contiguous(), view(saliency).contiguous())
    torch.testing.assert_close(view(mask.apply(code)), plain.apply(view(code)), rtol=0, atol=0)
    if layout.prefix_tokens:
        prefix = slice(0, layout.prefix_tokens)
        assert torch.equal(mask.apply(code)[:, prefix], code[:, prefix])


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("masker", TARGETED)
def test_useless_saliency_masks_nothing_and_warns_once(masker: type, bad: float) -> None:
    saliency = normal(2, 4, 6)
    saliency[1] = bad
    targeted = masker(0.5, 0)
    with pytest.warns(UserWarning, match=rf"{masker.__name__} leaves samples unmasked .* all zero or not finite"):
        factor = targeted(torch.ones(2, 4, 6), saliency).factor.flatten(1)
    assert (factor[0] == 0).sum() == factor.shape[1] // 2
    assert (factor[1] == 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targeted(torch.ones(2, 4, 6), saliency)


def test_a_single_bad_number_spoils_its_own_sample_only() -> None:
    saliency = normal(2, 4, 6)
    saliency[0, 1, 2] = math.nan
    with pytest.warns(UserWarning, match="not finite"):
        factor = TargetedSpatialMask(0.5, 0)(torch.ones(2, 4, 6), saliency).factor
    assert (factor == 0).sum((1, 2)).tolist() == [0, 3]


def test_nothing_is_read_back_from_the_device(generator: torch.Generator) -> None:
    # A meta tensor has no numbers, so whatever would make the host wait for a GPU raises.
    code = torch.empty(2, 8, 4, 4, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        code.sum().item()
    for masker in (*(m(p, a) for m in TARGETED for p in (0.3, (0, 0.5)) for a in (0, (0, 0.5))),):
        assert masker(code, code, generator=generator).factor.device.type == "meta"
    for p in (0.5, (0, 0.5)):
        assert RandomChannelMask(p)(code, generator=generator).factor.device.type == "meta"


@pytest.mark.slow
def test_targeted_masks_compile_without_a_graph_break() -> None:
    code, saliency = normal(2, 8, 4, 4), normal(2, 8, 4, 4, seed=1)
    for masker in (TargetedChannelMask(0.5, 0), TargetedSpatialMask(0.5, 0), TargetedChannelMask()):
        compiled = torch.compile(masker, fullgraph=True, backend="eager")
        torch.manual_seed(0)
        factor = compiled(code, saliency).factor
        torch.manual_seed(0)
        assert torch.equal(factor, masker(code, saliency).factor)


@pytest.mark.parametrize("masker", TARGETED)
def test_missing_or_misshapen_saliency_is_refused(masker: type) -> None:
    code = torch.zeros(2, 8, 3, 5)
    with pytest.raises(
        ValueError,
        match=rf"{masker.__name__} needs `saliency` shaped like the code \(2, 8, 3, 5\); "
        r"got None\. Pass latent_saliency\(loss, code\), or use RandomChannelMask\.",
    ):
        masker()(code)
    with pytest.raises(ValueError, match=r"got \(2, 8, 5, 3\)"):
        masker()(code, torch.zeros(2, 8, 5, 3))
    with pytest.raises(ValueError, match=r"got ndarray\."):
        masker()(code, np.zeros((2, 8, 3, 5)))
    with pytest.raises(ValueError, match=r"got None"):
        masker()(code, lambda: None)


def test_the_shape_in_the_error_is_the_users_own() -> None:
    with pytest.raises(ValueError, match=r"code \(2, 15, 8\); got \(2, 8, 15\)"):
        TargetedChannelMask()(torch.zeros(2, 15, 8), torch.zeros(2, 8, 15), layout=Layout(-1))


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(ValueError, match="score must be one of 'signed', 'magnitude', 'harm'; got 'abs'"):
        TargetedChannelMask(score="abs")


# RandomChannelMask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", CODES)
def test_random_channel_mask_drops_whole_channels_and_rescales_the_rest(
    shape: tuple[int, ...], generator: torch.Generator
) -> None:
    code = normal(2, 512, *shape[2:])
    masked = RandomChannelMask(0.25)(code, generator=generator).apply(code)
    kept = 0
    for b in range(2):
        for c in range(512):
            whole = torch.equal(masked[b, c], code[b, c] * (1 / torch.tensor(0.75)))
            assert whole or not masked[b, c].any()
            kept += whole
    assert kept == pytest.approx(768, abs=4 * math.sqrt(1024 * 0.25 * 0.75))


def test_the_edges_are_all_and_nothing() -> None:
    code = torch.ones(2, 8, 3)
    assert torch.equal(RandomChannelMask(1)(code).apply(code), torch.zeros(2, 8, 3))
    assert torch.equal(RandomChannelMask(1.0, rescale=False)(code).apply(code), torch.zeros(2, 8, 3))
    assert torch.equal(RandomChannelMask(0)(code).apply(code), code)


def test_without_rescaling_kept_channels_are_untouched(generator: torch.Generator) -> None:
    factor = RandomChannelMask(0.25, rescale=False)(torch.ones(2, 64, 3), generator=generator).factor
    assert factor.unique().tolist() == [0, 1]


def test_random_channel_mask_draws_its_rate_first_and_once_for_the_batch(generator: torch.Generator) -> None:
    twin = torch.Generator().manual_seed(0)
    p = 0.2 + (0.6 - 0.2) * torch.rand((), generator=twin)
    kept = torch.rand(4, 64, generator=twin) >= p
    factor = RandomChannelMask((0.2, 0.6))(torch.ones(4, 64, 3), generator=generator).factor
    assert torch.equal(factor, (kept / (1 - p)).unsqueeze(-1))


def test_prefix_tokens_are_kept_as_they_are(code: Tensor, layout: Layout) -> None:
    masked = RandomChannelMask(1)(code, layout=layout).apply(code)
    assert torch.equal(masked[:, : layout.prefix_tokens], code[:, : layout.prefix_tokens])
    assert not layout.to_channels_first(masked).any()


def test_random_channel_mask_asks_for_no_saliency() -> None:
    def never() -> Tensor:
        raise AssertionError("a random mask needs no saliency")

    RandomChannelMask()(torch.ones(2, 8, 3), never)


# Every masker -----------------------------------------------------------------------------------------------------

MASKERS = (RandomChannelMask(), TargetedChannelMask(), TargetedSpatialMask())


@pytest.fixture(params=MASKERS, ids=lambda masker: type(masker).__name__)
def masker(request: pytest.FixtureRequest) -> Masker:
    return copy.deepcopy(request.param)


def test_every_masker_takes_saliency_as_a_callable_and_asks_at_most_once(masker: Masker) -> None:
    code, saliency, asked = normal(2, 8, 3), normal(2, 8, 3, seed=1), []

    def compute() -> Tensor:
        asked.append(True)
        return saliency

    lazy = masker(code, compute, generator=torch.Generator().manual_seed(0))
    assert len(asked) == (not isinstance(masker, RandomChannelMask))
    eager = masker(code, saliency, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lazy.factor, eager.factor)


def test_a_callable_may_use_autograd(masker: Masker) -> None:
    code = normal(2, 8, 3).requires_grad_()
    masker(code, lambda: torch.autograd.grad((code**3).sum(), code)[0])
    assert code.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_masker_keeps_the_codes_dtype(masker: Masker, dtype: torch.dtype) -> None:
    code = normal(2, 8, 3).to(dtype)
    mask = masker(code, normal(2, 8, 3, seed=1).to(dtype))
    assert mask.factor.dtype == torch.float32
    assert mask.apply(code).dtype == dtype


def test_integer_codes_are_refused(masker: Masker) -> None:
    with pytest.raises(TypeError, match=rf"{type(masker).__name__} needs a floating-point code; got torch.int64\."):
        masker(torch.ones(2, 8, 3, dtype=torch.int64))


def test_gradients_flow_through_the_code_but_not_the_factor(masker: Masker) -> None:
    code = normal(2, 8, 3).requires_grad_()
    saliency = normal(2, 8, 3, seed=1).requires_grad_()
    mask = masker(code, saliency)
    assert not mask.factor.requires_grad
    mask.apply(code).sum().backward()
    assert torch.equal(code.grad, mask.factor.expand_as(code))
    assert saliency.grad is None


def test_every_masker_leaves_code_and_saliency_unchanged(masker: Masker) -> None:
    code, saliency = normal(2, 8, 3), normal(2, 8, 3, seed=1)
    masker(code, saliency).apply(code)
    assert torch.equal(code, normal(2, 8, 3))
    assert torch.equal(saliency, normal(2, 8, 3, seed=1))


def test_without_a_generator_the_global_seed_rules(masker: Masker) -> None:
    code, saliency = normal(2, 8, 3), normal(2, 8, 3, seed=1)
    torch.manual_seed(3)
    seeded = masker(code, saliency).factor
    by_hand = masker(code, saliency, generator=torch.Generator().manual_seed(3)).factor
    assert torch.equal(seeded, by_hand)


def test_train_and_eval_mode_mask_alike(masker: Masker) -> None:
    code, saliency = normal(2, 8, 3), normal(2, 8, 3, seed=1)
    train, evaluation = (
        m(code, saliency, generator=torch.Generator().manual_seed(0)).factor
        for m in (masker.train(), copy.deepcopy(masker).eval())
    )
    assert torch.equal(train, evaluation)


def test_every_masker_pickles_and_copies_to_an_equal_masker(masker: Masker) -> None:
    code, saliency = normal(2, 8, 3), normal(2, 8, 3, seed=1)
    first = masker(code, saliency, generator=torch.Generator().manual_seed(0)).factor
    for twin in (pickle.loads(pickle.dumps(masker)), copy.deepcopy(masker)):
        assert torch.equal(twin(code, saliency, generator=torch.Generator().manual_seed(0)).factor, first)
        assert repr(twin) == repr(masker)


def test_every_masker_has_no_parameters_and_nothing_to_save(masker: Masker) -> None:
    assert not list(masker.parameters())
    assert not masker.state_dict()


def test_an_empty_batch_is_a_batch(masker: Masker) -> None:
    code = torch.zeros(0, 8, 3)
    assert masker(code, code).apply(code).shape == (0, 8, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_never_waited_for(masker: Masker) -> None:
    code, saliency = normal(2, 8, 3), normal(2, 8, 3, seed=1)
    on_cpu = masker(code, saliency, generator=torch.Generator().manual_seed(0)).factor
    code, saliency = code.cuda(), saliency.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask = masker(code, saliency, generator=torch.Generator().manual_seed(0))
        mask.apply(code)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(mask.factor.cpu(), on_cpu)


def test_defaults_are_not_printed_and_the_rest_is() -> None:
    assert repr(RandomChannelMask()) == "RandomChannelMask()"
    assert repr(RandomChannelMask((0, 0.5), rescale=False)) == "RandomChannelMask(p=(0.0, 0.5), rescale=False)"
    assert repr(TargetedChannelMask()) == "TargetedChannelMask()"
    assert repr(TargetedSpatialMask(0.3, 0, score="magnitude")) == (
        "TargetedSpatialMask(percentile=0.3, annealing=0.0, score='magnitude')"
    )


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: TargetedChannelMask(50),
            ValueError,
            r"^percentile must be in \[0, 1\]; got 50\. Did you mean 0\.5\?$",
        ),
        (
            lambda: TargetedChannelMask((0, 50)),
            ValueError,
            r"percentile must be in \[0, 1\]; got 50\. Did you mean 0\.5",
        ),
        (lambda: TargetedChannelMask(-0.1), ValueError, r"^percentile must be in \[0, 1\]; got -0\.1\.$"),
        (lambda: TargetedChannelMask(math.nan), ValueError, r"percentile must be in \[0, 1\]; got nan\."),
        (lambda: TargetedSpatialMask(annealing=1.5), ValueError, r"^annealing must be in \[0, 1\]; got 1\.5\.$"),
        (lambda: TargetedSpatialMask((0.5, 0)), ValueError, r"low <= high; got \(0\.5, 0\)\. Swap the two\."),
        (lambda: TargetedSpatialMask((0, 0.2, 1)), TypeError, r"percentile must be a number or a pair .* got 3 values"),
        (lambda: TargetedSpatialMask("half"), TypeError, r"percentile must be a number or a pair .* got 'half'"),
        (lambda: RandomChannelMask(None), TypeError, r"^p must be a number or a pair \(low, high\); got None\.$"),
        (lambda: RandomChannelMask(2), ValueError, r"^p must be in \[0, 1\]; got 2\. Did you mean 0\.02\?$"),
        (lambda: RandomChannelMask(200), ValueError, r"^p must be in \[0, 1\]; got 200\.$"),
    ],
)
def test_options_out_of_range_are_refused(build: Callable[[], Masker], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_numbers_of_other_kinds_are_welcome() -> None:
    assert TargetedChannelMask([0, 1]).percentile == (0.0, 1.0)
    assert TargetedChannelMask(np.float32(0.5)).percentile == 0.5


def test_a_masker_of_ones_own_writes_only_sample(code: Tensor, layout: Layout) -> None:
    class Halve(Masker):
        def __init__(self, by: float = 0.5) -> None:
            super().__init__()
            self.amount = by

        def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
            assert code.shape[:2] == (2, 8)
            assert saliency().shape == code.shape
            return torch.full([1] * code.ndim, self.amount)

    mask = Halve()(code, code, layout=layout)
    sites = layout.to_channels_first
    assert torch.equal(sites(mask.apply(code)), sites(code) / 2)
    assert repr(Halve()) == "Halve()"


def test_a_masker_of_ones_own_need_not_detach() -> None:
    class Bound(Masker):
        def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
            return 1 / (1 + code.abs() + saliency().abs())

    code, saliency = normal(2, 8, 3).requires_grad_(), normal(2, 8, 3, seed=1).requires_grad_()
    assert not Bound()(code, saliency.detach()).factor.requires_grad
    assert not Bound()(code.detach(), saliency).factor.requires_grad


def test_a_masker_without_sample_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Masker needs a method sample\(code, saliency, generator\)"):
        Masker()(torch.zeros(1, 2, 3), layout=CHANNELS_FIRST)


def test_apply_casts_the_factor_and_not_the_code() -> None:
    mask = LatentMask(torch.tensor([0.5, 1.0], dtype=torch.float64).view(1, 2, 1))
    masked = mask.apply(torch.full((1, 2, 3), 2, dtype=torch.bfloat16))
    assert masked.dtype == torch.bfloat16
    assert masked.tolist() == [[[1.0] * 3, [2.0] * 3]]
