"""Methods that change codes while the network alone trains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cardiac.run.presets import Preset
from latentaug import (
    DSU,
    CooperativeModel,
    DropBlock,
    EFDMix,
    ManifoldMixup,
    MixStyle,
    RandomApply,
    RandomChannelMask,
    augmented,
)
from study.data.frame import DataError
from study.methods import METHODS, chosen
from study.methods.latent import LATENT
from study.methods.method import NOISE
from study.methods.network import Network

pytest.importorskip("segmentation_models_pytorch")
EVERY = pytest.mark.parametrize("name", LATENT)
LAYERS = [f"encoder.layer{level}" for level in (1, 2, 3, 4)]


def unet() -> CooperativeModel:
    torch.manual_seed(0)
    return Network("smp:Unet:resnet18").build(Preset(image_size=64, depth=2, width=2), {}).train()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(4, 1, 64, 64, generator=generator), torch.randint(4, (4, 64, 64), generator=generator)


def gradients(model: CooperativeModel) -> dict[str, Tensor]:
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@EVERY
def test_a_step_is_that_of_the_network_alone_with_its_codes_changed(name: str) -> None:
    model, by_hand, plain = unet(), unet(), unet()
    images, labels = batch()
    output = METHODS[name].backward(model, images, labels, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    with augmented(by_hand.model, dict(LATENT[name].latent), generator=generator) as run:
        noise = torch.randn(images.shape, generator=generator)
        logits = by_hand.model((images + NOISE * noise).clamp(0, 1))
        expected = run.loss(by_hand.loss, logits, labels)
    expected.backward()
    torch.testing.assert_close(output.loss, expected.detach())
    torch.testing.assert_close(gradients(model), gradients(by_hand))
    assert {*output.losses} == {"segmentation"}
    without = METHODS["plain"].backward(plain, images, labels, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(without.loss, output.loss)
    assert {*gradients(model)} == {*gradients(plain)}  # no head is trained


@EVERY
def test_the_network_is_left_as_it_was_and_predicts_from_its_own_codes(name: str) -> None:
    model = unet()
    before = {module: vars(module).get("forward") for module in model.modules()}
    METHODS[name].backward(model, *batch(), generator=torch.Generator().manual_seed(1))
    assert {module: vars(module).get("forward") for module in model.modules()} == before
    images, _ = batch()
    first, second = (model.eval()(images) for _ in range(2))
    assert torch.equal(first, second)


def test_which_transform_is_where() -> None:
    assert {name: [*method.latent] for name, method in LATENT.items()} == {
        "mixstyle": LAYERS[:2],
        "efdmix": LAYERS[:2],
        "manifold-mixup": LAYERS[1:2],
        "dsu": LAYERS,
        "dropblock": LAYERS[1:3],
        "latent-masks": LAYERS,
    }
    kinds = {name: {type(one) for one in method.latent.values()} for name, method in LATENT.items()}
    assert kinds == {
        "mixstyle": {MixStyle},
        "efdmix": {EFDMix},
        "manifold-mixup": {ManifoldMixup},
        "dsu": {DSU},
        "dropblock": {DropBlock},
        "latent-masks": {RandomApply},
    }
    masks = LATENT["latent-masks"].latent["encoder.layer1"]
    assert isinstance(masks, RandomApply)
    assert isinstance(masks.transforms[0], RandomChannelMask)
    assert (masks.p, masks.transforms[0].p) == (0.5, (0, 0.5))


def test_blocks_are_half_of_a_side_of_the_codes_of_the_cpu_preset() -> None:
    model, sides = unet(), {}
    for layer in LATENT["dropblock"].latent:
        model.model.get_submodule(layer).register_forward_hook(
            lambda module, given, code, layer=layer: sides.update({layer: code.shape[-1]})
        )
    model.eval()(torch.rand(1, 1, 80, 80))
    blocks = {layer: one.block_size for layer, one in LATENT["dropblock"].latent.items() if isinstance(one, DropBlock)}
    assert sides == {"encoder.layer2": 10, "encoder.layer3": 5}
    assert blocks == {layer: (side + 1) // 2 for layer, side in sides.items()}


@EVERY
def test_a_network_without_their_layers_is_refused_by_name(name: str) -> None:
    METHODS[name].see_that_it_fits(name, unet())
    model = Network().build(Preset(image_size=24, depth=1, width=2), {})
    with pytest.raises(DataError, match=f"--methods {name} changes codes of .*encoder.layer2.*, which FTN lacks"):
        METHODS[name].see_that_it_fits(name, model)


def test_methods_that_change_no_code_fit_any_network() -> None:
    model = Network().build(Preset(image_size=24, depth=1, width=2), {})
    for name in chosen(["all"]):
        METHODS[name].see_that_it_fits(name, model)
