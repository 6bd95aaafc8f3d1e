"""A plain loop on Lightning's Fabric, with its own backward pass."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("lightning")

from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision

from latentaug import cooperative_backward
from tests.integrations.lightning.parts import SGD, cooperative, loader, weights

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("wrapped", [True, False])
def test_it_is_a_loop_by_hand(wrapped: bool) -> None:
    coop = cooperative(shape_prior=True).train()
    reference = copy.deepcopy(coop)
    optimizer = SGD(reference.parameters())
    for number, (images, labels) in enumerate(loader()):
        torch.manual_seed(number)
        cooperative_backward(reference, images, labels)
        optimizer.step()
        optimizer.zero_grad()
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(coop, SGD(coop.parameters()))
    for number, (images, labels) in enumerate(fabric.setup_dataloaders(loader())):
        torch.manual_seed(number)
        cooperative_backward(model if wrapped else coop, images, labels, backward=fabric.backward)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in weights(reference).items():
        torch.testing.assert_close(value, weights(coop)[name], rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_scaled_once() -> None:
    images, labels = next(iter(loader()))
    found = []
    for scale in (1.0, 2.0**12):
        torch.manual_seed(0)
        coop = cooperative().train()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
        model, _ = fabric.setup(coop, SGD(coop.parameters()))
        torch.manual_seed(0)
        cooperative_backward(model, images, labels, backward=fabric.backward)
        found.append(coop.model.top.weight.grad / scale)
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.02 * float(found[0].abs().max()))
