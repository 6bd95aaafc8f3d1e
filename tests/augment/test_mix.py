"""ManifoldMixup on codes, skips, images and labels, and MoEx, against loops over samples."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug.augment.base import LatentTransform
from latentaug.augment.compose import Compose, OneOf
from latentaug.augment.mix import ManifoldMixup, MoEx
from latentaug.augment.style import PermutedStyle
from latentaug.layout import Layout
from latentaug.tap.latent_tap import LatentTap
from tests.support.codes import KINDS, Kind, samples_of, seeded
from tests.support.oracles import errors
from tests.support.oracles.mix import manifold_mixup, mo_ex

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def mixed_by_loop(tensor: Tensor, order: list[int], own: float) -> Tensor:
    """One sample at a time."""
    return torch.stack([own * tensor[i] + (1 - own) * tensor[partner] for i, partner in enumerate(order)])


@EVERY_KIND
def test_mixes_a_code_with_all_that_belongs_to_it(kind: Kind) -> None:
    """Prefix tokens too; and a skip, the image and a vector of the same pass by the same numbers."""
    code = kind.code().requires_grad_()
    change = ManifoldMixup()(code, layout=kind.layout, generator=seeded())
    order, own = change.params["order"].tolist(), float(change.params["own"])
    assert sorted(order) == [0, 1, 2, 3]
    assert 0 < own < 1
    skip, image, vector = (torch.randn(4, *shape, dtype=torch.float64) for shape in ((2, 10, 14), (1, 20, 28), (5,)))
    for tensor in (code, skip, image, vector):
        torch.testing.assert_close(change.apply(tensor), mixed_by_loop(tensor, order, own), rtol=1e-12, atol=1e-12)
    weight = kind.code(seed=1)
    gradient, expected = (
        torch.autograd.grad((one * weight).sum(), code)[0]
        for one in (change.apply(code), mixed_by_loop(code, order, own))
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_the_loop_tells_orders_and_fractions_apart() -> None:
    tensor = torch.randn(3, 2, generator=seeded())
    assert torch.equal(mixed_by_loop(tensor, [1, 2, 0], 1.0), tensor)
    assert torch.equal(mixed_by_loop(tensor, [1, 2, 0], 0.0), tensor[[1, 2, 0]])
    assert not torch.equal(mixed_by_loop(tensor, [1, 2, 0], 0.3), mixed_by_loop(tensor, [2, 0, 1], 0.3))


@EVERY_KIND
def test_manifoldmixup_agrees_with_a_loop(kind: Kind) -> None:
    found = errors(ManifoldMixup(), manifold_mixup, kind)
    assert found.values < 1e-12
    assert found.gradients < 1e-12


@pytest.mark.parametrize("labels_shape", [(4, 6, 6), (4, 1, 6, 6)])
def test_mixes_the_losses_of_labels_alike(labels_shape: tuple[int, ...]) -> None:
    logits = torch.randn(4, 3, 6, 6, generator=seeded())
    labels = torch.randint(3, labels_shape, generator=seeded(1))
    change = ManifoldMixup()(torch.ones(4, 2, 3, 3), generator=seeded(2))
    order, own = change.params["order"].tolist(), float(change.params["own"])

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels.view(4, 6, 6))

    partners = torch.stack([labels[partner] for partner in order])
    expected = own * criterion(logits, labels) + (1 - own) * criterion(logits, partners)
    torch.testing.assert_close(change.loss(criterion, logits, labels), expected)
    assert not torch.isclose(expected, criterion(logits, labels))


def test_the_mixed_loss_is_that_of_mixed_labels_where_a_loss_is_linear_in_them() -> None:
    logits = torch.randn(4, 3, 6, 6, generator=seeded())
    labels = torch.randint(3, (4, 6, 6), generator=seeded(1))
    change = ManifoldMixup()(torch.ones(4, 2, 3, 3), generator=seeded(2))
    soft = change.apply(F.one_hot(labels, 3).movedim(-1, 1).float())
    torch.testing.assert_close(change.loss(F.cross_entropy, logits, labels), F.cross_entropy(logits, soft))


def test_one_fraction_serves_the_whole_batch() -> None:
    assert ManifoldMixup()(torch.ones(8, 2, 3), generator=seeded()).params["own"].shape == ()


def test_a_gate_that_is_shut_mixes_neither_codes_nor_labels() -> None:
    code = torch.randn(4, 2, 3, generator=seeded())
    change = ManifoldMixup(p=0)(code, generator=seeded())
    assert not change.whole_pass
    assert change.apply(code) is code
    logits, labels = torch.randn(4, 3, generator=seeded()), torch.tensor([0, 1, 2, 0])
    assert torch.equal(change.loss(F.cross_entropy, logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_keeps_a_tensor_s_dtype(dtype: torch.dtype) -> None:
    change = ManifoldMixup()(torch.ones(4, 2, 3), generator=seeded())
    skip = torch.randn(4, 2, 3, generator=seeded()).to(dtype)
    changed = change.apply(skip)
    assert changed.dtype == dtype
    expected = mixed_by_loop(skip, change.params["order"].tolist(), float(change.params["own"]))
    torch.testing.assert_close(changed, expected.to(dtype), rtol=2e-2, atol=2e-2)


def test_an_empty_batch_stays_empty() -> None:
    assert ManifoldMixup()(torch.ones(0, 2, 3), generator=seeded()).apply(torch.ones(0, 2, 3)).shape == (0, 2, 3)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha must be a finite number above 0; got -1"):
        ManifoldMixup(alpha=-1)


@pytest.mark.parametrize("transform", [ManifoldMixup(), Compose([ManifoldMixup()]), OneOf([ManifoldMixup()])])
@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 6, 5)])
def test_samples_of_any_shape_are_mixed_whatever_the_layout(transform: LatentTransform, shape: tuple[int, ...]) -> None:
    code = torch.randn(shape, generator=seeded())
    change = transform(code, generator=seeded(1))
    order, own = change.params["order"], change.params["own"]
    torch.testing.assert_close(change.apply(code), own * code + (1 - own) * code[order])
    for layout in (Layout(-1, 6), Layout(5)):  # which fit none of them
        assert torch.equal(transform(code, layout=layout, generator=seeded(1)).apply(code), change.apply(code))


def test_vectors_are_mixed_in_a_network() -> None:
    model, inputs = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(4, 8, generator=seeded())
    with LatentTap(model, "0") as tap:
        model(inputs)
        change = tap.draw(ManifoldMixup(), generator=seeded(1))
        mixed = tap.replay(change)
    torch.testing.assert_close(mixed, model[1:](change.apply(model[0](inputs))))
    assert not torch.equal(mixed, model(inputs))


def test_what_has_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ManifoldMixup needs a code \[B, …\]; got shape \(\)"):
        ManifoldMixup()(torch.ones(()))


# MoEx -------------------------------------------------------------------------------------------------------------

STATISTICS = pytest.mark.parametrize("statistics", ["positional", "instance", "layer"])


@EVERY_KIND
@STATISTICS
@pytest.mark.parametrize("detach", [True, False])
def test_moex_agrees_with_a_loop(kind: Kind, statistics: str, detach: bool) -> None:
    transform = MoEx(statistics, p=1, detach_statistics=detach)
    found = errors(transform, partial(mo_ex, statistics=statistics, detach=detach), kind)
    assert found.values < 1e-12
    assert found.gradients < 1e-10


@STATISTICS
def test_the_loop_of_moex_tells_its_options_apart(statistics: str) -> None:
    kind, transform = KINDS["2-D"], MoEx(statistics, p=1)
    for other in {"positional", "instance", "layer"} - {statistics}:
        assert errors(transform, partial(mo_ex, statistics=other), kind).values > 0.1
    assert errors(transform, partial(mo_ex, statistics=statistics, detach=True), kind).gradients > 0.01
    order = {"order": transform(kind.code(), generator=seeded()).params["order"].roll(1)}
    assert errors(transform, lambda *args: mo_ex(*args[:2], order, statistics=statistics), kind).values > 0.01


def test_positional_moments_are_those_of_the_partner_at_the_same_position() -> None:
    kind = KINDS["2-D"]
    code = kind.code()
    change = MoEx(p=1, eps=1e-12)(code, generator=seeded())
    changed, given = (samples_of(one, kind.layout) for one in (change.apply(code), code))
    for i, partner in enumerate(change.params["order"].tolist()):
        for measured in (torch.mean, torch.std):
            torch.testing.assert_close(measured(torch.stack(changed[i]), 0), measured(torch.stack(given[partner]), 0))


def test_instance_moments_are_the_style() -> None:
    code = KINDS["2-D"].code()
    change = MoEx("instance", p=1)(code, generator=seeded())
    styled = PermutedStyle(eps=1e-5).transform(code, order=change.params["order"])
    torch.testing.assert_close(change.apply(code), styled)


@STATISTICS
def test_moex_s_gradients_reach_sample_and_partner_and_nobody_else(statistics: str) -> None:
    code = KINDS["2-D"].code().requires_grad_()
    change = MoEx(statistics, p=1)(code, generator=seeded())
    change.params["order"] = torch.tensor([1, 2, 3, 0])
    (gradient,) = torch.autograd.grad(change.apply(code)[0].square().sum(), code)
    assert gradient.flatten(1).any(1).tolist() == [True, True, False, False]


def test_moex_mixes_losses_by_lam_or_keeps_the_labels() -> None:
    logits, labels = torch.randn(4, 3, 6, 6, generator=seeded()), torch.randint(3, (4, 6, 6), generator=seeded(1))
    code = torch.randn(4, 2, 3, generator=seeded())
    for lam in (0.9, 0.25):
        change = MoEx(lam=lam, p=1)(code, generator=seeded(2))
        partners = torch.stack([labels[partner] for partner in change.params["order"].tolist()])
        expected = lam * F.cross_entropy(logits, labels) + (1 - lam) * F.cross_entropy(logits, partners)
        torch.testing.assert_close(change.loss(F.cross_entropy, logits, labels), expected)
    kept = MoEx(labels="keep", p=1)(code, generator=seeded(2))
    assert not kept.is_identity
    assert torch.equal(kept.loss(F.cross_entropy, logits, labels), F.cross_entropy(logits, labels))
    assert not torch.isclose(expected, F.cross_entropy(logits, labels))


def test_lam_is_sampled_once_per_batch() -> None:
    code, generator = torch.randn(4, 2, 3, generator=seeded()), seeded()
    sampled = torch.stack([MoEx(lam=(0.5, 0.9), p=1)(code, generator=generator).params["own"] for _ in range(200)])
    assert sampled.shape == (200,)
    assert 0.5 <= float(sampled.min()) < 0.52
    assert 0.88 < float(sampled.max()) < 0.9


@STATISTICS
@pytest.mark.parametrize("shape", [(3, 1, 4), (3, 2, 1), (3, 1, 1, 1), (3, 2, 4, 4)])
def test_moex_of_constant_codes_and_single_numbers_stays_finite(shape: tuple[int, ...], statistics: str) -> None:
    code = torch.full(shape, 5.0, requires_grad=True)
    changed = MoEx(statistics, p=1)(code, generator=seeded()).apply(code)
    (gradient,) = torch.autograd.grad(changed.square().sum(), code)
    torch.testing.assert_close(changed, code)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moex_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    code = (KINDS["2-D"].code(dtype=torch.float32) * 300).to(dtype)
    change = MoEx("layer", p=1)(code, generator=seeded())
    assert torch.equal(change.apply(code), change.apply(code.float()).to(dtype))


def test_moex_leaves_a_batch_of_one_alone() -> None:
    code = torch.randn(1, 3, 4, generator=seeded())
    with pytest.warns(UserWarning, match="MoEx combines the samples of a batch"):
        assert MoEx(p=1)(code, generator=seeded()).apply(code) is code


def test_options_of_moex_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"statistics must be one of 'positional', 'instance', 'layer'; got 'pono'"):
        MoEx("pono")
    with pytest.raises(ValueError, match=r"labels must be one of 'mix', 'keep'; got True"):
        MoEx(labels=True)
    with pytest.raises(ValueError, match=r"lam must be in \[0, 1\]; got 9"):
        MoEx(lam=9)
