"""What is tried on the example: a loss of the user's own, on labels in every shape that they come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug.cooperative.step import cooperative_backward
from tests.support.cooperation import batch, cooperative


def dice_of_hot_labels(logits: Tensor, labels: Tensor) -> Tensor:
    assert labels.shape == logits.shape, f"ground truth has shape {tuple(labels.shape)}, not {tuple(logits.shape)}"
    return 1 - (logits.softmax(1) * labels).mean()


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (dice_of_hot_labels, "ground truth has shape"),
        (nn.BCEWithLogitsLoss(), "Target size"),
    ],
    ids=["asserts", "binary"],
)
def test_a_loss_that_fails_on_labels_is_told_so_when_the_model_is_made(
    loss: Callable[[Tensor, Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"(?s)loss must take logits and labels as they come.*\(3, 16, 20\).*{reason}"
    ):
        cooperative(loss=loss)


def test_a_loss_that_returns_no_scalar_is_told_so_when_the_model_is_made() -> None:
    with pytest.raises(ValueError, match="CooperativeModel needs loss to be a scalar"):
        cooperative(loss=nn.CrossEntropyLoss(reduction="none"))


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "indices": (nn.CrossEntropyLoss(), lambda labels: labels),
    "an axis of channels": (
        lambda logits, labels: F.cross_entropy(logits, labels[:, 0].long()),
        lambda one: one[:, None],
    ),
    "floating point": (
        lambda logits, labels: F.cross_entropy(logits, labels.long()) if labels.is_floating_point() else 1 / 0,
        lambda labels: labels.float(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_gets_labels_in_the_shape_that_they_came_in(name: str) -> None:
    loss, given_as = LOSSES[name]
    seen: list[Any] = []

    def given(logits: Tensor, labels: Tensor) -> Tensor:
        value = loss(logits, labels)
        seen.append((labels.shape, labels.is_floating_point()))
        return value

    coop, (images, labels) = cooperative(loss=given), batch()
    seen.clear()
    cooperative_backward(coop, images, given_as(labels))
    shape = given_as(labels).shape
    assert {one for one, _ in seen} == {shape}


def test_a_loss_that_is_a_module_is_left_as_it_was() -> None:
    class Counting(nn.CrossEntropyLoss):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.last: Any = None

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            self.calls += 1
            self.last = torch.rand(())
            return super().forward(logits, labels)

    loss = Counting()
    torch.manual_seed(0)
    expected = torch.rand(())
    cooperative(loss=loss)  # which seeds with 0
    assert loss.calls == 0
    assert loss.last is None
    assert expected >= 0


def test_what_a_loss_draws_moves_no_random_stream() -> None:
    def noisy(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits + torch.rand(()), labels)

    drawn = []
    for loss in (noisy, F.cross_entropy):
        cooperative(loss=loss)  # which seeds
        drawn.append(torch.rand(()))
    assert torch.equal(*drawn)
