"""What a step returns: a tuple with the loss first, joined from two stages and cut off its graph."""

from __future__ import annotations

import torch
from torch import Tensor

from latentaug.cooperative.output import CooperativeOutput, detached, joined
from tests.support.cooperation import HARD, STANDARD, batch, cooperative


def output(start: float, *names: str) -> CooperativeOutput:
    """Make an output of one weight, whose losses count up from a number."""
    weight = torch.tensor(1.0, requires_grad=True)
    losses = {name: weight * (start + i) for i, name in enumerate(names)}
    logits = weight * torch.full((1, 2, 4), start)
    return CooperativeOutput(torch.stack([*losses.values()]).sum(), losses, logits, logits + 1, None, None)


def test_output_is_a_named_tuple_with_the_loss_first() -> None:
    found = cooperative()(*batch())
    assert isinstance(found, tuple)
    assert isinstance(found, CooperativeOutput)
    assert found[0] is found.loss
    assert list(found.losses) == STANDARD + HARD
    assert found.hard_images is not None
    assert found.hard_segmentation is not None
    assert found.logits.shape == found.refined.shape == found.hard_segmentation.shape == (3, 3, 16, 20)
    assert found.hard_images.shape == (3, 1, 16, 20)


def test_two_stages_joined_have_all_losses_and_the_rest_of_the_first() -> None:
    hard_images, samples = torch.rand(1, 1, 4), torch.tensor([0])
    standard = output(1, "a", "b")._replace(hard_images=hard_images, hard_samples=samples)
    hard = output(10, "c")
    both = joined(standard, hard)
    assert both.loss == 1 + 2 + 10
    assert {name: term.item() for name, term in both.losses.items()} == {"a": 1, "b": 2, "c": 10}
    assert list(both.losses) == ["a", "b", "c"]
    assert both[2:] == standard[2:]
    assert list(standard.losses) == ["a", "b"]
    both.loss.backward()


def test_a_detached_output_has_the_same_numbers_and_no_graph() -> None:
    live = output(3, "a", "b")
    cut = detached(live)
    torch.testing.assert_close(cut.losses, {name: term.detach() for name, term in live.losses.items()}, rtol=0, atol=0)
    assert (cut.loss, cut.hard_images, cut.hard_segmentation, cut.hard_samples) == (live.loss, None, None, None)
    assert torch.equal(cut.logits, live.logits)
    assert torch.equal(cut.refined, live.refined)
    tensors: list[Tensor] = [cut.loss, cut.logits, cut.refined, *cut.losses.values()]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert live.loss.requires_grad


def test_an_output_is_shown_by_its_losses_and_shapes_and_not_by_its_numbers() -> None:
    shown = repr(output(3, "a", "b")._replace(logits=torch.zeros(2, 3, 8, 8), hard_images=torch.zeros(1, 1, 8, 8)))
    assert shown.startswith("CooperativeOutput(loss=7, losses=(a=3, b=4), logits=[2, 3, 8, 8], refined=")
    assert shown.endswith("hard_images=[1, 1, 8, 8], hard_segmentation=None, hard_samples=None)")
    assert len(shown) < 200
