"""What is averaged, and when. `tests/distributed/test_together.py` has two processes do it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from latentaug import ranks
from latentaug.cooperative import averaging
from latentaug.cooperative.averaging import average_gradients, is_averaged_by_wrapper, see_that_weights_are_alike
from latentaug.cooperative.step import cooperative_backward
from tests.support.tiny_training import tiny_coop


@pytest.fixture
def four_ranks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Stand for four ranks, the others of which have the gradient of this one, times 2 in all."""
    sent = list[Tensor]()
    monkeypatch.setattr(ranks, "count", lambda: 4)
    monkeypatch.setattr(ranks, "anywhere", lambda what, flags: [True, *flags[1:]])
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: sent.append(flat.mul_(2)))
    return sent


def test_gradients_of_one_kind_are_sent_at_once(four_ranks: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Conv2d(1, 2, 3), nn.Linear(2, 2))
    model[2].weight.grad = torch.rand(2, 3, 1, 3).transpose(1, 2)  # memory in another order than the numbers
    for one in (model[0].bias, model[1].weight):
        one.grad = torch.rand_like(one)
    model[3].weight.requires_grad_(False)
    expected = [None if one.grad is None else one.grad / 2 for one in model.parameters()]
    average_gradients(model)
    assert torch.equal(model[0].weight.grad, torch.zeros(2, 2))  # which another rank has one for
    for one, value in [*zip(model.parameters(), expected, strict=True)][1:]:
        assert (one.grad is None) if value is None else torch.equal(one.grad, value)
    assert [(one.dtype, len(one)) for one in four_ranks] == [(torch.float32, 4 + 2 + 18), (torch.float64, 4)]
    four_ranks.clear()
    monkeypatch.setattr(averaging, "_BUCKET", 20)
    average_gradients(model)
    assert [len(one) for one in four_ranks] == [4 + 2, 4, 18]


def test_one_process_alone_averages_nothing() -> None:
    model = nn.Linear(2, 2)
    average_gradients(model)
    see_that_weights_are_alike(model)
    assert model.weight.grad is None


def test_a_wrapper_counts_where_it_is_around_the_model_and_not_within(process_group: None) -> None:
    coop = tiny_coop()
    assert is_averaged_by_wrapper(DistributedDataParallel(coop, find_unused_parameters=True))
    assert not is_averaged_by_wrapper(coop)
    coop.model = DistributedDataParallel(coop.model)
    assert not is_averaged_by_wrapper(coop)  # the heads are not the wrapper's


def test_sums_of_bits_tell_weights_apart() -> None:
    weights = torch.ones(3), torch.ones(3).half(), torch.ones(3, dtype=torch.complex64), torch.ones(3).double()
    for one in weights:
        other = one.clone()
        assert averaging._sum(one) == averaging._sum(other)
        other[1] = 1.001
        assert averaging._sum(one) != averaging._sum(other)


def test_whether_to_average_is_a_truth_value() -> None:
    with pytest.raises(TypeError, match="average must be True or False; got 'no'"):
        cooperative_backward(tiny_coop(), torch.rand(1, 1, 8, 8), torch.zeros(1, 8, 8).long(), average="no")
