"""Models that checkpoint their activations themselves, and models whose blocks the cooperative model checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug import CooperativeModel, HardExamples, LatentTap, ShapePrior, cooperative_backward

nets = pytest.importorskip("monai.networks.nets.unet")
pytestmark = pytest.mark.integration

WAYS = ["one backward", "branch by branch", "stage by stage"]
BLOCKS = ("model.model.0", "model.model.1.submodule.0", "model.model.1.submodule.2", "model.model.2", "shape_prior")
VOLUME = (2, 1, 8, 8, 8)


class Wrapper(torch.nn.Module):
    """Stands for DDP: calls the module that it holds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def unet(kind: str = "UNet", norm: str = "INSTANCE") -> torch.nn.Module:
    if not hasattr(nets, kind):
        pytest.skip(f"this version of MONAI has no {kind}")
    torch.manual_seed(0)
    options = {"channels": (4, 8, 16), "strides": (2, 2), "num_res_units": 1, "norm": norm, "dropout": 0.1}
    return getattr(nets, kind)(3, 1, 3, **options).double()


def step(
    model: torch.nn.Module, way: str, *, checkpointed: Sequence[str] = ()
) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Return losses, gradients and buffers of one step."""
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand(VOLUME, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 8, 8, 8), generator=generator)
    torch.manual_seed(1)
    prior = ShapePrior(3, width=2, depth=2, spatial_dims=3).double()
    hard = HardExamples(every=1, separate=False, separate_decoder=False, noise=0.05)
    coop = CooperativeModel(model, num_classes=3, example=volumes, reconstruction=True, shape_prior=prior, hard=hard)
    coop.checkpointed = checkpointed
    torch.manual_seed(2)
    if way == "one backward":
        output = coop(volumes, labels, generator=generator)
        output.loss.backward()
    else:
        wrapped = Wrapper(coop) if way == "stage by stage" else coop
        output = cooperative_backward(wrapped, volumes, labels, generator=generator)
    losses = {name: term.detach() for name, term in output.losses.items()}
    return losses, [parameter.grad for parameter in coop.parameters()], list(coop.buffers())


def test_masked_replays_of_a_unet_that_checkpoints_itself_are_exact() -> None:
    """Its regions lie one in another, around the bottleneck."""
    plain, checkpointing = unet(), unet("CheckpointUNet")
    volumes = torch.rand(VOLUME, dtype=torch.float64)
    outcomes = []
    for model in (plain, checkpointing):
        with LatentTap(model, example=volumes) as tap:
            torch.manual_seed(3)
            logits = model(volumes)
            with torch.no_grad():
                masked = tap.replay(tap.code * (tap.code > tap.code.mean()))
            outcomes.append((logits.detach(), masked, tap.code.detach()))
    for ours, theirs in zip(*outcomes, strict=True):
        assert torch.equal(ours, theirs)

    tapped = dict(checkpointing.named_modules())[tap.layers[0].name]
    replacing = tapped.register_forward_hook(lambda module, inputs, code: code * (code > code.mean()))
    torch.manual_seed(3)
    with torch.no_grad():
        assert torch.equal(checkpointing(volumes), outcomes[1][1])
    replacing.remove()


@pytest.mark.parametrize("way", WAYS)
def test_a_unet_that_checkpoints_itself_gets_the_gradients_of_one_that_does_not(way: str) -> None:
    losses, gradients, _ = step(unet(), way)
    again, same, _ = step(unet("CheckpointUNet"), way)
    assert losses == again
    assert all(map(torch.equal, gradients, same))


@pytest.mark.parametrize("way", WAYS[1:])
def test_with_batch_normalisation_too(way: str) -> None:
    """Not in one backward pass: statistics are frozen in the hard stage, and `checkpoint` notices that it is over."""
    losses, gradients, _ = step(unet(norm="BATCH"), way)
    again, same, _ = step(unet("CheckpointUNet", norm="BATCH"), way)
    assert losses == again
    assert all(map(torch.equal, gradients, same))


@pytest.mark.parametrize("norm", ["INSTANCE", "BATCH"])
@pytest.mark.parametrize("way", WAYS)
def test_blocks_of_any_model_are_checkpointed_by_name(way: str, norm: str) -> None:
    losses, gradients, buffers = step(unet(norm=norm), way)
    again, same, moved = step(unet(norm=norm), way, checkpointed=BLOCKS)
    assert losses == again
    assert all(map(torch.equal, gradients, same))
    assert all(map(torch.equal, buffers, moved))
