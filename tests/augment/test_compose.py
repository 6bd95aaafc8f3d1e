"""Transforms made of transforms: products, choices, coins, and any nesting of them; of maskers first."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug.augment.base import Change, Context, LatentTransform
from latentaug.augment.compose import Compose, OneOf, RandomApply, paper_masks
from latentaug.augment.drop import DropBlock
from latentaug.augment.image import GIN
from latentaug.augment.masks import LatentMask, Masker, RandomChannelMask, TargetedChannelMask, TargetedSpatialMask
from latentaug.augment.mix import ManifoldMixup
from latentaug.augment.style import MixStyle
from latentaug.layout import Layout
from tests.support.codes import KINDS, Kind, seeded


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


# Compose ----------------------------------------------------------------------------------------------------------


def test_compose_is_the_product_of_its_parts(code: Tensor, layout: Layout) -> None:
    saliency = torch.randn(code.shape, generator=torch.Generator().manual_seed(2))
    channel, spatial = TargetedChannelMask(0.5, 0.25), TargetedSpatialMask(0.3, 0.5)
    mask = Compose([channel, spatial])(code, saliency, layout=layout)
    factors = [part(code, saliency, layout=layout).factor for part in (channel, spatial)]
    assert torch.equal(mask.factor, factors[0] * factors[1])


def test_compose_draws_in_order_from_one_generator(generator: torch.Generator) -> None:
    code, saliency = normal(2, 8, 5), normal(2, 8, 5, seed=1)
    parts = [RandomChannelMask(), TargetedSpatialMask(), RandomChannelMask((0, 0.5))]
    together = Compose(parts)(code, saliency, generator=generator).factor
    twin = torch.Generator().manual_seed(0)
    one_by_one = [part(code, saliency, generator=twin).factor for part in parts]
    assert torch.equal(together, one_by_one[0] * one_by_one[1] * one_by_one[2])


def test_compose_computes_the_saliency_once_for_all() -> None:
    code, saliency = normal(2, 8, 5), Counted(normal(2, 8, 5, seed=1))
    Compose([TargetedChannelMask(), Compose([TargetedSpatialMask(), TargetedChannelMask()])])(code, saliency)
    assert saliency.calls == 1


def test_compose_computes_no_saliency_that_nobody_needs() -> None:
    saliency = Counted(normal(2, 8, 5))
    Compose([RandomChannelMask(), Multiply(2)])(normal(2, 8, 5), saliency)
    assert saliency.calls == 0


def test_compose_of_one_is_that_one() -> None:
    assert Compose([Multiply(3)])(torch.ones(1, 1, 1)).factor.item() == 3


# OneOf ------------------------------------------------------------------------------------------------------------


def test_one_of_a_list_chooses_each_as_often() -> None:
    drawn = values_drawn(OneOf([Multiply(1), Multiply(2), Multiply(3), Multiply(4)]))
    assert {value: n / 2000 for value, n in drawn.items()} == {value: share(0.25) for value in (1, 2, 3, 4)}


@pytest.mark.parametrize("total", [1, 20])
def test_one_of_a_dict_chooses_by_weight_of_any_sum(total: float) -> None:
    drawn = values_drawn(OneOf({Multiply(1): 0.7 * total, Multiply(2): 0.3 * total, Multiply(3): 0}))
    assert {value: n / 2000 for value, n in drawn.items()} == {1: share(0.7), 2: share(0.3)}


def test_the_frequency_check_refuses_wrong_frequencies() -> None:
    assert share(0.25) != 0.3
    assert share(0.7) != 0.5


def test_one_of_chooses_once_for_the_whole_batch(generator: torch.Generator) -> None:
    choice = OneOf([TargetedChannelMask(0.5, 0), TargetedSpatialMask(0.5, 0)])
    code, saliency = normal(8, 4, 6), normal(8, 4, 6, seed=1)
    shapes = Counter(choice(code, saliency, generator=generator).factor.shape for _ in range(40))
    assert set(shapes) == {(8, 4, 1), (8, 1, 6)}


def test_one_of_pays_for_a_saliency_only_when_the_chosen_one_needs_it(generator: torch.Generator) -> None:
    choice = OneOf([RandomChannelMask(), TargetedSpatialMask()])
    code, saliency = normal(2, 8, 5), Counted(normal(2, 8, 5, seed=1))
    factors = [choice(code, saliency, generator=generator).factor for _ in range(40)]
    assert saliency.calls == sum(factor.shape[1] == 1 for factor in factors)
    assert 0 < saliency.calls < 40


@pytest.mark.parametrize("weights", [(-1, 2), (0, 0), (math.nan, 1), (math.inf, 1)])
def test_useless_weights_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"weights must (be a finite number, 0 or more|not all be zero); got"):
        OneOf(dict(zip([Multiply(1), Multiply(2)], weights, strict=True)))


@pytest.mark.parametrize("weight", ["a", None, True, [1]])
def test_weights_that_are_no_numbers_are_refused(weight: Any) -> None:
    with pytest.raises(TypeError, match=r"weights must be a number; got"):
        OneOf({Multiply(1): weight, Multiply(2): 1})


# RandomApply ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_random_apply_applies_as_often_as_asked(p: float) -> None:
    drawn = values_drawn(RandomApply(Multiply(2), p=p))
    assert {value: n / 2000 for value, n in drawn.items()} == {1: share(1 - p), 2: share(p)}


def test_zero_is_never_and_one_is_always() -> None:
    assert values_drawn(RandomApply(Multiply(2), p=0), times=200) == {1: 200}
    assert values_drawn(RandomApply(Multiply(2), p=1), times=200) == {2: 200}


def test_random_apply_leaves_the_whole_batch_alone_and_asks_for_nothing(code: Tensor, layout: Layout) -> None:
    saliency = Counted(code)
    mask = RandomApply(TargetedChannelMask(), p=0)(code, saliency, layout=layout)
    assert mask.is_identity
    assert mask.apply(code) is code
    assert saliency.calls == 0


@pytest.mark.parametrize(
    "transform",
    [
        DropBlock(0.3, 3).eval(),
        Compose([RandomApply(Multiply(2), p=0), DropBlock(0.3, 3).eval()]),
        OneOf([RandomApply(RandomApply(Multiply(2)), p=0)]),
        Compose([MixStyle(p=0), RandomApply(GIN(), p=0), RandomApply(Multiply(2), p=0)]),
    ],
    ids=["eval", "masks", "nested", "mixed"],
)
def test_what_nobody_of_changes_is_the_code_itself_and_stays_so(
    transform: LatentTransform, code: Tensor, layout: Layout
) -> None:
    change: Change = transform(code, layout=layout)
    again = transform.change_from(change.state_dict())
    for one in (change, again, change.to("meta"), copy.deepcopy(change), change.on(layout)):
        assert one.is_identity
        assert one.apply(code) is code
        assert repr(one).endswith("leaves all as it is)")
    assert torch.equal(change.loss(F.mse_loss, code, code + 1), torch.ones(()))


def test_one_that_acts_is_enough() -> None:
    code = torch.ones(2, 3, 4)
    for others in ([RandomApply(Multiply(3), p=0)], [MixStyle(p=0)]):
        change = Compose([*others, Multiply(2)])(code)
        assert not change.is_identity
        assert torch.equal(change.apply(code), 2 * code)


def test_a_mask_that_keeps_everything_is_still_one_for_codes_of_its_axes() -> None:
    mask = RandomApply(Multiply(2), p=0)(torch.ones(2, 3, 4))
    assert torch.equal(mask.factor, torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match=r"This mask is for a code of shape \(1, 1, 1\)"):
        mask.apply(torch.ones(2, 3))


def test_random_apply_refuses_a_probability_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"^p must be in \[0, 1\]; got 50\. Did you mean 0\.5\?"):
        RandomApply(Multiply(2), p=50)


# paper_masks ------------------------------------------------------------------------------------------------------


def test_paper_masks_is_one_of_the_three_with_the_papers_settings() -> None:
    masks = paper_masks()
    assert isinstance(masks, OneOf)
    assert len(set(masks.weights)) == 1
    dropout, channel, spatial = masks.transforms
    assert (type(dropout), dropout.p, dropout.rescale) == (RandomChannelMask, 0.5, True)
    for targeted, kind in ((channel, TargetedChannelMask), (spatial, TargetedSpatialMask)):
        assert type(targeted) is kind
        assert (targeted.percentile, targeted.annealing, targeted.score) == ((0, 0.5), (0, 0.5), "signed")


def test_both_targeted_masks_rank_by_the_score_given() -> None:
    assert [getattr(masker, "score", None) for masker in paper_masks("harm").transforms] == [None, "harm", "harm"]


def test_paper_masks_uses_all_three(generator: torch.Generator) -> None:
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


# Nesting ----------------------------------------------------------------------------------------------------------


def test_a_nested_masker_prints_as_it_was_built() -> None:
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
def test_a_nested_masker_pickles_copies_and_repeats(seed: int) -> None:
    code, saliency = normal(2, 8, 5), normal(2, 8, 5, seed=1)
    expected = NESTED(code, saliency, generator=torch.Generator().manual_seed(seed)).factor
    for twin in (NESTED, copy.deepcopy(NESTED), pickle.loads(pickle.dumps(NESTED))):
        assert torch.equal(twin(code, saliency, generator=torch.Generator().manual_seed(seed)).factor, expected)


@pytest.mark.parametrize("seed", range(8))
def test_a_layout_is_handled_once(code: Tensor, layout: Layout, seed: int) -> None:
    saliency = torch.randn(code.shape, generator=torch.Generator().manual_seed(2))
    view = layout.to_channels_first
    masked = NESTED(code, saliency, layout=layout, generator=torch.Generator().manual_seed(seed)).apply(code)
    plain = NESTED(view(code), view(saliency), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(view(masked), plain.apply(view(code)))
    assert torch.equal(masked[:, : layout.prefix_tokens], code[:, : layout.prefix_tokens])


@pytest.mark.parametrize("kind", [Compose, OneOf])
def test_missing_saliency_is_named_with_the_users_shape(kind: Callable[[list[Masker]], Masker]) -> None:
    masker = kind([TargetedChannelMask()])
    with pytest.raises(
        ValueError, match=rf"{type(masker).__name__} needs `saliency` .* code \(2, 5, 8\); got None\. Pass"
    ):
        masker(torch.zeros(2, 5, 8), layout=Layout(-1))


def test_a_hook_on_a_child_sees_its_mask(generator: torch.Generator) -> None:
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
    with pytest.raises(TypeError, match=rf"{name} needs transforms; got the class TargetedChannelMask"):
        kind([TargetedChannelMask])


def test_random_apply_checks_its_child() -> None:
    with pytest.raises(TypeError, match=r"RandomApply needs transforms; got 0\.5"):
        RandomApply(0.5)


# Of any transforms ------------------------------------------------------------------------------------------------


class AddMean(LatentTransform):
    """Add a number, and the mean of what it was sampled for."""

    def __init__(self, number: float = 0.0) -> None:
        super().__init__()
        self.number = number

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        return {"mean": code.mean()}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        return code + params["mean"] + self.number


class RolledLabels(AddMean):
    """Mix each label with the one `by` places on."""

    def __init__(self, by: int, own: float) -> None:
        super().__init__()
        self.by, self.own = by, own

    def loss(self, criterion: Any, logits: Tensor, labels: Tensor, **params: Any) -> Tensor:
        rolled = criterion(logits, labels.roll(-self.by, 0))
        loss: Tensor = self.own * criterion(logits, labels) + (1 - self.own) * rolled
        return loss


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_compose_changes_what_the_last_one_made(kind: Kind) -> None:
    parts = [MixStyle(p=1), TargetedChannelMask(0.4, 0), DropBlock(0.3, 3), AddMean(), GIN()]
    code, saliency = kind.code(dtype=torch.float32), kind.code(seed=1, dtype=torch.float32)
    change = Compose(parts)(code, saliency, layout=kind.layout, generator=seeded(2))
    generator, expected = seeded(2), code
    for part in parts:
        expected = part(expected, saliency, layout=kind.layout, generator=generator).apply(expected)
    torch.testing.assert_close(change.apply(code), expected)
    assert not isinstance(change, LatentMask)


def test_compose_keeps_the_order() -> None:
    code = torch.tensor([[[1.0, 3.0]]])
    assert Compose([AddMean(1), Multiply(10)])(code).apply(code).tolist() == [[[40, 60]]]
    assert Compose([Multiply(10), AddMean(1)])(code).apply(code).tolist() == [[[31, 51]]]


def test_compose_computes_one_saliency_for_transforms_of_any_kind() -> None:
    saliency = Counted(normal(2, 8, 5, seed=1))
    Compose([TargetedChannelMask(), AddMean(), TargetedSpatialMask()])(normal(2, 8, 5), saliency)
    assert saliency.calls == 1


def test_compose_mixes_labels_one_after_the_other() -> None:
    logits, labels = normal(5, 3), torch.tensor([0, 1, 2, 0, 1])
    change = Compose([RolledLabels(1, 0.9), AddMean(), RolledLabels(2, 0.6)])(normal(5, 2, 4))
    soft = F.one_hot(labels, 3).float()
    soft = torch.stack([0.9 * soft[i] + 0.1 * soft[(i + 1) % 5] for i in range(5)])
    soft = torch.stack([0.6 * soft[i] + 0.4 * soft[(i + 2) % 5] for i in range(5)])
    torch.testing.assert_close(change.loss(F.cross_entropy, logits, labels), F.cross_entropy(logits, soft))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "make", [OneOf, Compose, lambda parts: RandomApply(parts[0], 1)], ids=["OneOf", "Compose", "1"]
)
def test_a_choice_of_one_is_that_one(make: Callable[[list[LatentTransform]], LatentTransform], kind: Kind) -> None:
    code = kind.code(dtype=torch.float32)
    for part in (MixStyle(p=1), DropBlock(0.3, 3), GIN(p=0.5), ManifoldMixup()):
        change = make([part])(code, layout=kind.layout, generator=seeded(2))
        generator = seeded(2)
        if not isinstance(make([part]), Compose):
            torch.multinomial(torch.ones(1, dtype=torch.float64), 1, generator=generator)  # the choice
        if isinstance(make([part]), RandomApply):
            generator = seeded(2)
            torch.rand((), generator=generator)
        expected = part(code, layout=kind.layout, generator=generator)
        assert torch.equal(change.apply(code), expected.apply(code))
        assert change.whole_pass == part.whole_pass
        assert (change.gate is None) == (expected.gate is None)


def test_one_of_chooses_any_transform_by_weight() -> None:
    choice = OneOf({AddMean(1): 3, Multiply(0): 1, ManifoldMixup(): 0})
    code, generator = torch.zeros(1, 1, 1), seeded()
    results = Counter(choice(code + 1, generator=generator).apply(code + 1).item() for _ in range(2000))
    assert {value: n / 2000 for value, n in results.items()} == {3: share(0.75), 0: share(0.25)}


def test_random_apply_leaves_codes_and_labels_alone_or_changes_both() -> None:
    logits, labels, code = normal(8, 8), torch.arange(8), normal(8, 2, 5)
    changes = [RandomApply(ManifoldMixup(), p=0.3)(code, generator=seeded(seed)) for seed in range(200)]
    for change in changes:
        same = torch.equal(change.loss(F.cross_entropy, logits, labels), F.cross_entropy(logits, labels))
        assert same is torch.equal(change.apply(code), code) is not change.whole_pass
    acted = sum(change.whole_pass for change in changes)
    assert abs(acted - 60) < 4 * math.sqrt(200 * 0.3 * 0.7)


def test_in_eval_mode_each_child_does_as_it_would_alone() -> None:
    code = normal(3, 4, 6)
    both = Compose([MixStyle(p=1), Multiply(3), GIN()]).eval()
    assert torch.equal(both(code).apply(code), code * 3)
    assert torch.equal(OneOf([MixStyle(p=1)]).eval()(code).apply(code), code)
    alone = Compose([MixStyle(p=1), Multiply(3)])
    alone.transforms[0].eval()
    assert torch.equal(alone(code).apply(code), code * 3)


def test_what_changes_a_whole_pass_stands_alone() -> None:
    message = "Compose needs transforms of one code; got one that changes a whole pass"
    with pytest.raises(TypeError, match=message):
        Compose([ManifoldMixup(), RandomChannelMask()])
    with pytest.raises(TypeError, match=message):
        Compose([GIN(), OneOf([ManifoldMixup(), GIN()])])
    assert Compose([ManifoldMixup()]).whole_pass
    assert OneOf([GIN(), ManifoldMixup()]).whole_pass


def test_a_layout_matters_if_it_does_to_any_child() -> None:
    assert ManifoldMixup().any_layout
    assert OneOf([ManifoldMixup(), RandomApply(ManifoldMixup())]).any_layout
    assert not MixStyle().any_layout
    assert not OneOf([ManifoldMixup(), MixStyle()]).any_layout


def test_what_is_asked_for_is_what_any_child_asks_for() -> None:
    assert Compose([GIN(), OneOf([MixStyle(), TargetedChannelMask()]), TargetedSpatialMask()]).needs == ("saliency",)
    assert OneOf([GIN(), RandomChannelMask()]).needs == ()


def test_the_place_is_that_of_all_children_or_none_that_is_known() -> None:
    assert OneOf([MixStyle(), RandomApply(MixStyle())]).place == MixStyle.place == "early"
    assert Compose([DropBlock(), MixStyle(), DropBlock()]).place == "deep and early"
