"""A loss of the user's own: called as it is, told of where it fails, and no part of the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug.cooperative.given_loss import GivenLoss, OutputLoss
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.step import cooperative_backward
from tests.support.cooperation import batch, cooperative

LOGITS, LABELS = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4, 4).long()


def test_the_loss_is_called_with_what_was_given() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(GivenLoss(loss)(LOGITS, LABELS), loss(LOGITS, LABELS))


def test_a_loss_that_fails_on_an_axis_of_channels_is_told_of_with_the_shapes() -> None:
    message = r"logits of shape \(2, 3, 4, 4\) and labels of shape \(2, 1, 4, 4\) it raised RuntimeError: .*\n?.*Pass"
    with pytest.raises(ValueError, match=message):
        GivenLoss(nn.CrossEntropyLoss())(LOGITS, LABELS.unsqueeze(1))


def test_an_error_that_has_nothing_to_do_with_the_shape_passes_through() -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        raise KeyError("mine")

    def other(logits: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("mine, too")

    with pytest.raises(KeyError, match="mine"):
        GivenLoss(loss)(LOGITS, LABELS.float())
    with pytest.raises(RuntimeError, match="mine, too"):
        GivenLoss(other)(LOGITS, LABELS.float())


def test_a_loss_of_indices_is_asked_in_floating_point_once() -> None:
    types = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        types.append(labels.dtype)
        return F.cross_entropy(logits, labels)

    given = GivenLoss(loss)
    for _ in range(2):
        assert torch.equal(given(LOGITS, LABELS.float()), F.cross_entropy(LOGITS, LABELS))
    assert types == [torch.float32, torch.int64, torch.int64]


@pytest.mark.parametrize("learned", [True, False])
def test_the_weights_of_a_loss_are_no_part_of_the_model(learned: bool) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale: Any = nn.Parameter(torch.ones(())) if learned else torch.ones(())
            self.register_buffer("weight", torch.ones(3))

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return self.scale * F.cross_entropy(logits, labels, self.weight)

    plain, own = cooperative(), cooperative(loss=Own())
    assert own.state_dict().keys() == plain.state_dict().keys()
    assert len(list(own.parameters())) == len(list(plain.parameters()))
    assert torch.equal(copy.deepcopy(own).eval()(*batch()).loss, own.eval()(*batch()).loss)


def test_the_weights_of_a_loss_go_where_the_logits_are() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(3, device="meta"))
    moved: list[Any] = []
    loss.to = lambda device: moved.append(device)  # type: ignore[method-assign, assignment, return-value, misc]
    with pytest.raises((RuntimeError, NotImplementedError)):
        GivenLoss(loss)(LOGITS, LABELS)
    assert moved == [LOGITS.device]


class Deep(nn.Module):
    """Returns logits at two resolutions, and what is none."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.fine, self.coarse = nn.Conv2d(1, 4, 4, 4), nn.ConvTranspose2d(4, 3, 4, 4), nn.Conv2d(4, 3, 1)

    def forward(self, images: Tensor) -> dict[str, Any]:
        code = self.encoder(images).relu()
        return {"out": [self.fine(code), self.coarse(code)], "note": "as it is"}


def deep_loss(output: dict[str, Any], labels: dict[str, Any]) -> Tensor:
    assert output["note"] == "as it is"
    terms = zip(output["out"], labels["targets"], strict=True)
    return torch.stack([F.cross_entropy(one, target) for one, target in terms]).sum()


def test_a_loss_of_all_that_the_model_returns_gets_it_and_labels_in_any_form() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(2, 1, 16, 16), torch.randint(3, (2, 16, 16))
    given = {"targets": [labels, labels[:, ::4, ::4]], "name": "a form of its own"}
    model = CooperativeModel(
        Deep(), num_classes=3, example=images, codes="encoder", loss=OutputLoss(deep_loss), hard=HardExamples(every=1)
    )
    output = cooperative_backward(model, images, given)  # type: ignore[arg-type]
    assert {*output.losses} == {"segmentation", "hard_code_segmentation"}
    assert torch.equal(output.losses["segmentation"], deep_loss(model.model(images), given).detach())
    assert output.logits.shape == (2, 3, 16, 16)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("heads", [{"reconstruction": True}, {"shape_prior": True}])
def test_a_loss_of_all_that_the_model_returns_takes_no_heads(heads: dict[str, bool]) -> None:
    images = torch.rand(2, 1, 16, 16)
    with pytest.raises(ValueError, match="is of what the model returns, and heads learn from logits"):
        CooperativeModel(Deep(), num_classes=3, example=images, codes="encoder", loss=OutputLoss(deep_loss), **heads)


def test_a_loss_of_all_that_the_model_returns_must_be_one() -> None:
    with pytest.raises(TypeError, match="OutputLoss needs a callable"):
        OutputLoss(nn.CrossEntropyLoss)  # type: ignore[arg-type]
