"""Maskers made of maskers: products, choices, coins, and any nesting of them."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from latentaug.augment.compose import Compose, OneOf, RandomApply, paper_masks
from latentaug.augment.masks import Masker, RandomChannelMask, TargetedChannelMask, TargetedSpatialMask
from latentaug.layout import Layout


class Multiply(Masker):
    """Multiplies by a number, so that a test sees who acted."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        return torch.full([1] * code.ndim, self.by)


class Counted:
    """A saliency that counts how often it is computed."""

    def __init__(self, saliency: Tensor) -> None:
        self.saliency = saliency
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.saliency


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def share(number: float) -> object:
    """What a frequency over 2000 draws may be: within four standard deviations."""
    return pytest.approx(number, abs=4 * math.sqrt(number * (1 - number) / 2000))


def values_drawn(masker: Masker, times: int = 2000) -> Counter[float]:
    generator = torch.Generator().manual_seed(0)
    code = torch.ones(1, 1, 1)
    return Counter(round(masker(code, generator=generator).factor.item(), 3) for _ in range(times))


class TestCompose:
    def test_is_the_product_of_its_parts(self, code: Tensor, layout: Layout) -> None:
        saliency = torch.randn(code.shape, generator=torch.Generator().manual_seed(2))
        channel, spatial = TargetedChannelMask(0.5, 0.25), TargetedSpatialMask(0.3, 0.5)
        mask = Compose([channel, spatial])(code, saliency, layout=layout)
        factors = [part(code, saliency, layout=layout).factor for part in (channel, spatial)]
        assert torch.equal(mask.factor, factors[0] * factors[1])

    def test_draws_in_order_from_one_generator(self, generator: torch.Generator) -> None:
        code, saliency = normal(2, 8, 5), normal(2, 8, 5, seed=1)
        parts = [RandomChannelMask(), TargetedSpatialMask(), RandomChannelMask((0, 0.5))]
        together = Compose(parts)(code, saliency, generator=generator).factor
        twin = torch.Generator().manual_seed(0)
        one_by_one = [part(code, saliency, generator=twin).factor for part in parts]
        assert torch.equal(together, one_by_one[0] * one_by_one[1] * one_by_one[2])

    def test_computes_the_saliency_once_for_all(self) -> None:
        code, saliency = normal(2, 8, 5), Counted(normal(2, 8, 5, seed=1))
        Compose([TargetedChannelMask(), Compose([TargetedSpatialMask(), TargetedChannelMask()])])(code, saliency)
        assert saliency.calls == 1

    def test_computes_no_saliency_that_nobody_needs(self) -> None:
        saliency = Counted(normal(2, 8, 5))
        Compose([RandomChannelMask(), Multiply(2)])(normal(2, 8, 5), saliency)
        assert saliency.calls == 0

    def test_of_one_is_that_one(self) -> None:
        assert Compose([Multiply(3)])(torch.ones(1, 1, 1)).factor.item() == 3


class TestOneOf:
    def test_of_a_list_chooses_each_as_often(self) -> None:
        drawn = values_drawn(OneOf([Multiply(1), Multiply(2), Multiply(3), Multiply(4)]))
        assert {value: n / 2000 for value, n in drawn.items()} == {value: share(0.25) for value in (1, 2, 3, 4)}

    @pytest.mark.parametrize("total", [1, 20])
    def test_of_a_dict_chooses_by_weight_of_any_sum(self, total: float) -> None:
        drawn = values_drawn(OneOf({Multiply(1): 0.7 * total, Multiply(2): 0.3 * total, Multiply(3): 0}))
        assert {value: n / 2000 for value, n in drawn.items()} == {1: share(0.7), 2: share(0.3)}

    def test_the_frequency_check_refuses_wrong_frequencies(self) -> None:
        assert share(0.25) != 0.3
        assert share(0.7) != 0.5

    def test_chooses_once_for_the_whole_batch(self, generator: torch.Generator) -> None:
        choice = OneOf([TargetedChannelMask(0.5, 0), TargetedSpatialMask(0.5, 0)])
        code, saliency = normal(8, 4, 6), normal(8, 4, 6, seed=1)
        shapes = Counter(choice(code, saliency, generator=generator).factor.shape for _ in range(40))
        assert set(shapes) == {(8, 4, 1), (8, 1, 6)}

    def test_pays_for_a_saliency_only_when_the_chosen_one_needs_it(self, generator: torch.Generator) -> None:
        choice = OneOf([RandomChannelMask(), TargetedSpatialMask()])
        code, saliency = normal(2, 8, 5), Counted(normal(2, 8, 5, seed=1))
        factors = [choice(code, saliency, generator=generator).factor for _ in range(40)]
        assert saliency.calls == sum(factor.shape[1] == 1 for factor in factors)
        assert 0 < saliency.calls < 40

    @pytest.mark.parametrize("weights", [(-1, 2), (0, 0), (math.nan, 1), (math.inf, 1)])
    def test_useless_weights_are_refused(self, weights: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match="OneOf needs weights >= 0, finite and not all zero; got"):
            OneOf(dict(zip([Multiply(1), Multiply(2)], weights, strict=True)))


class TestRandomApply:
    @pytest.mark.parametrize("p", [0.2, 0.5])
    def test_applies_as_often_as_asked(self, p: float) -> None:
        drawn = values_drawn(RandomApply(Multiply(2), p=p))
        assert {value: n / 2000 for value, n in drawn.items()} == {1: share(1 - p), 2: share(p)}

    def test_zero_is_never_and_one_is_always(self) -> None:
        assert values_drawn(RandomApply(Multiply(2), p=0), times=200) == {1: 200}
        assert values_drawn(RandomApply(Multiply(2), p=1), times=200) == {2: 200}

    def test_leaves_the_whole_batch_alone_and_asks_for_nothing(self, code: Tensor, layout: Layout) -> None:
        saliency = Counted(code)
        mask = RandomApply(TargetedChannelMask(), p=0)(code, saliency, layout=layout)
        assert torch.equal(mask.apply(code), code)
        assert saliency.calls == 0

    def test_refuses_a_probability_out_of_range(self) -> None:
        with pytest.raises(ValueError, match=r"^p must be in \[0, 1\]; got 50\. Did you mean 0\.5\?"):
            RandomApply(Multiply(2), p=50)


class TestPaperMasks:
    def test_is_one_of_the_three_with_the_papers_settings(self) -> None:
        masks = paper_masks()
        assert isinstance(masks, OneOf)
        assert len(set(masks.weights)) == 1
        dropout, channel, spatial = masks.transforms
        assert (type(dropout), dropout.p, dropout.rescale) == (RandomChannelMask, 0.5, True)
        for targeted, kind in ((channel, TargetedChannelMask), (spatial, TargetedSpatialMask)):
            assert type(targeted) is kind
            assert (targeted.percentile, targeted.annealing, targeted.score) == ((0, 0.5), (0, 0.5), "signed")

    def test_both_targeted_masks_rank_by_the_score_given(self) -> None:
        assert [getattr(masker, "score", None) for masker in paper_masks("harm").transforms] == [None, "harm", "harm"]

    def test_uses_all_three(self, generator: torch.Generator) -> None:
        masks, code, saliency = paper_masks(), normal(1, 8, 6), normal(1, 8, 6, seed=1)
        factors = [masks(code, saliency, generator=generator).factor for _ in range(60)]
        kinds = Counter("dropout" if factor.max() > 1 else str(factor.shape[1]) for factor in factors)
        assert set(kinds) == {"dropout", "8", "1"}


NESTED = OneOf(
    {
        Compose([RandomChannelMask((0, 0.5)), TargetedSpatialMask(0.3, 0)]): 0.5,
        RandomApply(OneOf([TargetedChannelMask(), TargetedSpatialMask(score="magnitude")]), p=0.75): 1.5,
    }
)


class TestNesting:
    def test_prints_as_it_was_built(self) -> None:
        assert repr(NESTED) == (
            "OneOf(\n"
            "  weights=(0.5, 1.5)\n"
            "  (transforms): ModuleList(\n"
            "    (0): Compose(\n"
            "      (transforms): ModuleList(\n"
            "        (0): RandomChannelMask(p=(0.0, 0.5))\n"
            "        (1): TargetedSpatialMask(percentile=0.3, annealing=0.0)\n"
            "      )\n"
            "    )\n"
            "    (1): RandomApply(\n"
            "      p=0.75\n"
            "      (transforms): ModuleList(\n"
            "        (0): OneOf(\n"
            "          (transforms): ModuleList(\n"
            "            (0): TargetedChannelMask()\n"
            "            (1): TargetedSpatialMask(score='magnitude')\n"
            "          )\n"
            "        )\n"
            "      )\n"
            "    )\n"
            "  )\n"
            ")"
        )

    @pytest.mark.parametrize("seed", range(8))
    def test_pickles_copies_and_repeats(self, seed: int) -> None:
        code, saliency = normal(2, 8, 5), normal(2, 8, 5, seed=1)
        expected = NESTED(code, saliency, generator=torch.Generator().manual_seed(seed)).factor
        for twin in (NESTED, copy.deepcopy(NESTED), pickle.loads(pickle.dumps(NESTED))):
            assert torch.equal(twin(code, saliency, generator=torch.Generator().manual_seed(seed)).factor, expected)

    @pytest.mark.parametrize("seed", range(8))
    def test_a_layout_is_handled_once(self, code: Tensor, layout: Layout, seed: int) -> None:
        saliency = torch.randn(code.shape, generator=torch.Generator().manual_seed(2))
        view = layout.to_channels_first
        masked = NESTED(code, saliency, layout=layout, generator=torch.Generator().manual_seed(seed)).apply(code)
        plain = NESTED(view(code), view(saliency), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(view(masked), plain.apply(view(code)))
        assert torch.equal(masked[:, : layout.prefix_tokens], code[:, : layout.prefix_tokens])

    @pytest.mark.parametrize("kind", [Compose, OneOf])
    def test_missing_saliency_is_named_with_the_users_shape(self, kind: Callable[[list[Masker]], Masker]) -> None:
        masker = kind([TargetedChannelMask()])
        with pytest.raises(
            ValueError, match=rf"{type(masker).__name__} needs `saliency` .* code \(2, 5, 8\); got None\. Pass"
        ):
            masker(torch.zeros(2, 5, 8), layout=Layout(-1))

    def test_a_hook_on_a_child_sees_its_mask(self, generator: torch.Generator) -> None:
        seen = []
        child = TargetedChannelMask()
        with child.register_forward_hook(lambda module, inputs, mask: seen.append(mask)):
            mask = Compose([child])(normal(2, 8, 5), normal(2, 8, 5, seed=1), generator=generator)
        assert torch.equal(seen[0].factor, mask.factor)


@pytest.mark.parametrize("kind", [Compose, OneOf])
def test_children_are_checked(kind: Callable[[list[object]], Masker]) -> None:
    name = kind.__name__
    with pytest.raises(ValueError, match=f"{name} needs at least one transform; got none"):
        kind([])
    with pytest.raises(TypeError, match=rf"{name} needs transforms; got ReLU\(\)\. Pass an instance"):
        kind([Multiply(1), nn.ReLU()])
    with pytest.raises(TypeError, match=rf"{name} needs transforms; got <class .*TargetedChannelMask"):
        kind([TargetedChannelMask])


def test_random_apply_checks_its_child() -> None:
    with pytest.raises(TypeError, match=r"RandomApply needs transforms; got 0\.5"):
        RandomApply(0.5)
