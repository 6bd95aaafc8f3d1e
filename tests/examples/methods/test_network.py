"""Networks of a library in place of the paper's."""

from __future__ import annotations

import pytest
import torch

from cardiac.run.presets import Preset
from latentaug import FTN, cooperative_backward
from study.data.frame import DataError
from study.methods.network import HEADS, Network

SMALL = Preset(image_size=64, depth=2, width=2)


def library() -> None:
    pytest.importorskip("segmentation_models_pytorch")


def test_the_papers_network_is_the_default() -> None:
    model = Network().build(SMALL, HEADS)
    assert isinstance(model.model, FTN)
    assert Network().stages == ("FTN", "FTN+STN")
    assert str(model.image_code) == "encoder"


@pytest.mark.parametrize("name", ["smp:Unet:resnet18", "smp:fpn:mobilenet_v2"])
def test_a_librarys_network_has_its_code_found(name: str) -> None:
    library()
    model = Network(name).build(SMALL, HEADS)
    assert (str(model.image_code), [str(code) for code in model.shape_codes]) == ("encoder[3]", ["encoder[5]"])
    assert model.maker.residual == (0, 1)
    assert model.eval()(torch.rand(2, 1, 64, 64)).shape == (2, 4, 64, 64)


def test_a_unet_takes_images_whose_side_its_stride_does_not_divide() -> None:
    library()
    model = Network("smp:Unet:resnet18").build(Preset(image_size=80, depth=2, width=2), HEADS)
    images, labels = torch.rand(2, 1, 80, 80), torch.randint(4, (2, 80, 80))
    output = cooperative_backward(model.train(), images, labels)
    assert output.hard_images.shape == (2, 1, 80, 80)
    assert output.hard_segmentation.shape == (2, 4, 80, 80)


def test_stages_are_called_by_the_architecture() -> None:
    assert Network("smp:Unet:resnet18").stages == ("Unet", "Unet+STN")
    assert Network("smp:FPN").stages == ("FPN", "FPN+STN")


def test_layers_may_be_chosen() -> None:
    library()
    model = Network("smp:Unet:resnet18", ("encoder[5]", "encoder[3]")).build(SMALL, HEADS)
    assert [str(code) for code in model.shape_codes] == ["encoder[5]", "encoder[3]"]
    assert str(model.image_code) == "encoder[3]"
    assert [str(code) for code in Network(layers=("encoder",)).build(SMALL, HEADS).shape_codes] == ["encoder"]


def test_images_may_be_reconstructed_from_a_layer_that_is_not_masked_in_the_segmentation() -> None:
    library()
    for layers, masked in (((), ["encoder[5]"]), (("encoder[5]", "encoder[4]"), ["encoder[5]", "encoder[4]"])):
        model = Network("smp:Unet:resnet18", layers, "encoder[2]").build(SMALL, HEADS)
        assert str(model.image_code) == "encoder[2]"
        assert [str(code) for code in model.shape_codes] == masked


@pytest.mark.parametrize("name", ["Unet", "smp", "smp:", "smp:Unet:", "smp:Unet:resnet18:5", "torchvision:fcn", "ftn"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"--model must be FTN or smp:Architecture:encoder.*{name}"):
        Network(name)


def test_the_papers_network_has_no_pretrained_weights() -> None:
    with pytest.raises(DataError, match="--encoder-weights imagenet"):
        Network(encoder_weights="imagenet")


@pytest.mark.parametrize(
    ("network", "size", "named"),
    [
        (Network("smp:Vnet:resnet18"), 64, "Wrong architecture type `Vnet`"),
        (Network("smp:Unet:resnet19"), 64, "Wrong encoder name `resnet19`"),
        (Network("smp:Unet:resnet18", encoder_weights="dreams"), 64, "dreams"),
        (Network("smp:Unet:resnet18", ("encodr",)), 64, "with --layers encodr .*closest: 'encoder'"),
        (Network("smp:Unet:resnet18", (), "encodr"), 64, "with --image-code encodr .*closest: 'encoder'"),
        (Network("smp:FPN:resnet18"), 80, "images of 80 x 80: .*divisible by 32.*--image-size, --crop and --halve"),
    ],
)
def test_what_cannot_be_built_is_one_line_with_the_reason(network: Network, size: int, named: str) -> None:
    library()
    with pytest.raises(DataError, match=named) as caught:
        network.build(Preset(image_size=size, depth=2, width=2), HEADS)
    assert "\n" not in str(caught.value)
