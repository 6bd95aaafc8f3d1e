"""ManifoldMixup on codes, skips, images and labels, against a loop over samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.mix import ManifoldMixup
from latentaug.layout import Layout
from tests.support.codes import KINDS, Kind, seeded

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
    with pytest.raises(ValueError, match=r"alpha must be above 0; got -1\. The paper takes 2\."):
        ManifoldMixup(alpha=-1)


def test_a_layout_that_does_not_fit_is_still_refused() -> None:
    with pytest.raises(ValueError, match=r"more tokens than the prefix"):
        ManifoldMixup()(torch.ones(4, 2, 3), layout=Layout(-1, 2))
