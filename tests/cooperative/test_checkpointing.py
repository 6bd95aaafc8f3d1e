"""Activation checkpointing that repeats the first computation and leaves no trace."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from latentaug.cooperative.checkpointing import checkpointed
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.step import cooperative_backward
from latentaug.tracing.isolation import frozen_norm_statistics
from tests.support.codes import seeded
from tests.support.cooperation import WAYS, batch, case, cooperative, gradients_of
from tests.support.counting import bytes_kept

# Any modules ----------------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.3))
    return nn.Sequential(
        block, nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    ).double()


@pytest.mark.parametrize("names", [["0"], ["0", "2"], [""]])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_and_statistics_are_those_of_the_plain_model(names: list[str], frozen: bool) -> None:
    model, images = network(), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    other = copy.deepcopy(model)
    for one, which in ((model, []), (other, names)):
        torch.manual_seed(1)
        with checkpointed({name: one.get_submodule(name) for name in which}):
            if frozen:
                with frozen_norm_statistics(one):
                    loss = one(images).square().sum()
            else:
                loss = one(images).square().sum()
        loss.backward()  # the contexts are left
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    assert all(map(torch.equal, model.buffers(), other.buffers()))
    assert other[0][1].track_running_stats
    assert all("forward" not in vars(module) for module in other.modules())


def test_several_backward_passes_repeat_the_same_computation() -> None:
    model, images = network(), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    with checkpointed({"0": model[0]}):
        loss = model(images).square().sum()
    first, second = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert int(model[0][1].num_batches_tracked) == 1


def test_only_what_goes_into_a_module_is_kept() -> None:
    model, images = network(), torch.rand(3, 2, 8, 8, dtype=torch.float64)

    def checkpointing() -> None:
        with checkpointed({"": model}):
            model(images)

    weights = sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())
    assert bytes_kept(checkpointing) <= images.untyped_storage().nbytes()
    assert bytes_kept(lambda: model(images)) > images.untyped_storage().nbytes() + weights


def test_nothing_is_kept_or_repeated_without_gradients() -> None:
    model, images = network().eval(), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad(), checkpointed({"0": model[0]}):
        output = model(images)
    assert output.grad_fn is None
    assert torch.equal(output, model(images))


# Parts of a cooperative model -----------------------------------------------------------------------------------------

PARTS = {
    "blocks": ("model.stem", "model.up", "model.top", "shape_prior.encoder", "reconstruction_head"),
    "around the code": ("model",),
    "the code itself": ("model.bottleneck",),
}


@pytest.mark.parametrize("names", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("way", ["one backward", *WAYS])
def test_a_step_with_checkpointed_parts_is_the_same_to_the_last_bit(names: tuple[str, ...], way: str) -> None:
    images, labels = batch(dtype=torch.float64)
    outcomes = []
    for parts in ((), names):
        coop = cooperative(dtype=torch.float64, hard=HardExamples(frozen_norms=("model.top",)))
        coop.checkpointed = parts
        torch.manual_seed(1)
        if way == "one backward":
            output = coop(images, labels, generator=seeded())
            output.loss.backward()
        else:
            output = cooperative_backward(WAYS[way](coop), images, labels, generator=seeded())
        outcomes.append((output.losses, gradients_of(coop), dict(coop.named_buffers())))
        assert all("forward" not in vars(module) for module in coop.modules())
    assert all(gradient is not None for gradient in outcomes[0][1].values())
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)


def test_less_of_a_step_is_kept_for_the_backward_pass() -> None:
    coop, images, labels = case("unet")
    plain = bytes_kept(lambda: coop(images, labels))
    coop.checkpointed = ("model.stem", "model.top", "shape_prior", "reconstruction_head")
    assert bytes_kept(lambda: coop(images, labels)) < 0.5 * plain


def test_a_copy_and_a_pickle_compute_their_own_again() -> None:
    coop = cooperative()
    coop.checkpointed = ("model.stem", "shape_prior")
    images, labels = batch()
    for other in (copy.deepcopy(coop), pickle.loads(pickle.dumps(coop))):
        cooperative_backward(other, images, labels)
        assert all(gradient is None for gradient in gradients_of(coop).values())
        assert all(gradient is not None for gradient in gradients_of(other).values())


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("model.stemm",), r"checkpointed must name submodules, .* got \['model.stemm'\]"),
        (("model.stem", "model"), r"none inside another; got 'model' and 'model.stem'"),
        (("image_transform.transforms",), r"'image_transform.transforms' only holds some: name those"),
    ],
)
def test_names_that_cannot_be_checkpointed_are_refused(names: tuple[str, ...], match: str) -> None:
    coop = cooperative()
    with pytest.raises(ValueError, match=match):
        coop.checkpointed = names
    assert coop.checkpointed == ()
