"""The tap on networks of other libraries: found where expected, replayed as the oracle says, left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from latentaug.discovery import find_bottleneck
from latentaug.tap import LatentTap
from tests.hostile_models import Case, close, gradients, halved, oracle, same, seed_all, traces

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),  # what the libraries themselves use
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]


def smp(name: str, encoder: str = "resnet18", **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("segmentation_models_pytorch")
        return getattr(library, name)(encoder, encoder_weights=None, **options)

    return build


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("torchvision").models.segmentation
        return getattr(library, name)(weights=None, weights_backbone=None, **options)

    return build


def monai(name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("monai.networks.nets")
        return getattr(library, name)(*args, **options)

    return build


RGB, GREY, VOLUME = (2, 3, 64, 64), (2, 1, 64, 64), (2, 1, 32, 32, 32)
FEW = (4, 8, 16, 32, 64, 8)
MIT, SWIN, VIT = "mit_b0", "tu-swin_tiny_patch4_window7_224", "tu-vit_tiny_patch16_224"

FAST = {
    "smp Unet": (Case(smp("Unet", in_channels=1), "encoder", path=(5,), shape=(2, 1, 64, 96)), (2, 512, 2, 3)),
    "torchvision LRASPP": (
        Case(torchvision("lraspp_mobilenet_v3_large"), "backbone", path=("high",), shape=RGB),
        (2, 960, 4, 4),
    ),
    "MONAI BasicUNet": (Case(monai("BasicUNet", 2, 1, 2, features=FEW), "down_4", shape=GREY), (2, 64, 4, 4)),
    "MONAI UNet 3-D": (
        Case(
            monai("UNet", 3, 1, 2, (4, 8, 16, 32), (2, 2, 2), num_res_units=2),
            "model.1.submodule.1.submodule.1",
            shape=(2, 1, 16, 16, 16),
        ),
        (2, 48, 2, 2, 2),  # of the skip connection around the innermost block
    ),
}

SLOW = {
    "smp Unet of depth 3": (
        Case(smp("Unet", encoder_depth=3, decoder_channels=(64, 32, 16)), "encoder", path=(3,), shape=RGB),
        (2, 128, 8, 8),
    ),
    "smp Unet with classifier": (
        Case(smp("Unet", aux_params={"classes": 2, "dropout": 0.3}), "encoder", path=(5,), shape=RGB),
        (2, 512, 2, 2),
    ),
    "smp Unet convnext": (Case(smp("Unet", "tu-convnext_tiny"), "encoder", path=(5,), shape=RGB), (2, 768, 2, 2)),
    "smp UnetPlusPlus": (
        Case(smp("UnetPlusPlus", "efficientnet-b0"), "encoder", path=(5,), shape=RGB),
        (2, 320, 2, 2),
    ),
    "smp MAnet": (Case(smp("MAnet", MIT), "encoder", path=(5,), shape=RGB), (2, 256, 2, 2)),
    "smp Linknet": (Case(smp("Linknet", "mobilenet_v2"), "encoder", path=(5,), shape=RGB), (2, 1280, 2, 2)),
    "smp UPerNet": (Case(smp("UPerNet", "vgg11_bn"), "encoder", path=(5,), shape=RGB), (2, 512, 2, 2)),
    "smp Segformer": (Case(smp("Segformer", MIT), "encoder", path=(5,), shape=RGB), (2, 256, 2, 2)),
    "smp FPN": (Case(smp("FPN", SWIN, img_size=64), "encoder", path=(5,), shape=RGB), (2, 768, 2, 2)),
    "smp PSPNet": (Case(smp("PSPNet"), "encoder", path=(3,), shape=RGB), (2, 128, 8, 8)),
    "smp PAN": (Case(smp("PAN"), "encoder", path=(5,), shape=(2, 3, 128, 128)), (2, 512, 8, 8)),
    "smp DeepLabV3": (Case(smp("DeepLabV3", MIT), "encoder", path=(5,), shape=RGB), (2, 256, 8, 8)),
    "smp DeepLabV3Plus": (
        Case(smp("DeepLabV3Plus", "mobileone_s0"), "encoder", path=(5,), shape=RGB),
        (2, 1024, 4, 4),
    ),
    "smp DPT": (Case(smp("DPT", VIT, dynamic_img_size=True), "encoder", path=(0, 3), shape=RGB), (2, 192, 4, 4)),
    "torchvision FCN": (
        Case(torchvision("fcn_resnet50", aux_loss=True), "backbone", path=("out",), shape=RGB),
        (2, 2048, 8, 8),
    ),
    "torchvision DeepLabV3": (
        Case(torchvision("deeplabv3_mobilenet_v3_large"), "backbone", path=("out",), shape=RGB),
        (2, 960, 4, 4),
    ),
    "MONAI AttentionUnet": (
        Case(
            monai("AttentionUnet", 2, 1, 2, (8, 16, 32, 64), (2, 2, 2)),
            "model.1.submodule.1.submodule.1.submodule",
            shape=GREY,
        ),
        (2, 64, 8, 8),
    ),
    "MONAI DynUNet": (
        Case(
            monai("DynUNet", 2, 1, 2, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[8, 16, 32, 64], deep_supervision=True),
            "bottleneck",
            shape=GREY,
        ),
        (2, 64, 8, 8),
    ),
    "MONAI SegResNetVAE": (
        Case(
            monai("SegResNetVAE", (64, 64), spatial_dims=2, init_filters=8, in_channels=1), "down_layers.3", shape=GREY
        ),
        (2, 64, 8, 8),
    ),
    "MONAI SegResNetDS": (
        Case(monai("SegResNetDS", 2, 8, 1, 2, blocks_down=(1, 1, 1)), "encoder", path=(2,), shape=GREY),
        (2, 32, 16, 16),
    ),
    "MONAI UNETR": (
        Case(
            monai(
                "UNETR",
                *(1, 2, (64, 64)),
                feature_size=8,
                hidden_size=48,
                mlp_dim=96,
                num_heads=4,
                spatial_dims=2,
                dropout_rate=0.2,
            ),
            "vit",
            path=(0,),
            shape=GREY,
        ),
        (2, 16, 48),
    ),
    "MONAI SwinUNETR 3-D": (
        Case(
            monai("SwinUNETR", 1, 2, feature_size=12, use_checkpoint=True),
            "encoder10",
            shape=(1, 1, 64, 32, 32),
            modes=(False,),
        ),
        (1, 192, 2, 1, 1),
    ),
    "MONAI BasicUNetPlusPlus": (
        Case(monai("BasicUNetPlusPlus", 2, 1, 2, features=FEW, deep_supervision=True), "conv_4_0", shape=GREY),
        (2, 64, 4, 4),
    ),
}

ROWS = [
    *(pytest.param(*row, id=name) for name, row in FAST.items()),
    *(pytest.param(*row, id=name, marks=pytest.mark.slow) for name, row in SLOW.items()),
]
IN_EACH_MODE = [
    pytest.param(*row.values, train, id=f"{row.id}-{'train' if train else 'eval'}", marks=row.marks)
    for row in ROWS
    for train in row.values[0].modes
]


@pytest.mark.parametrize(("case", "shape"), ROWS)
def test_the_bottleneck_is_the_expected_one(case: Case, shape: tuple[int, ...]) -> None:
    model = case.model(True)
    before = traces(model)
    location = find_bottleneck(model, case.images())
    assert (location.name, location.index, location.shape) == (case.layer, case.path, shape)
    assert traces(model) == before


@pytest.mark.parametrize(("case", "shape", "train"), IN_EACH_MODE)
def test_replays_equal_the_oracle(case: Case, shape: tuple[int, ...], train: bool) -> None:
    reference, expected, code = oracle(case, train, halved)
    expected_gradients = gradients(reference, expected)
    model = case.model(train)
    before = traces(model)
    seed_all(0)
    with LatentTap(model, case.spot) as tap:
        output = model(case.images())
        assert tuple(tap.code.shape) == shape
        assert torch.equal(tap.code, code)
        for full in (False, True):
            assert same(tap.replay(None, full=full), output)
            replayed = tap.replay(halved(tap.code), full=full)
            assert same(replayed, expected)
            # Twelve digits, but for position embeddings, which timm interpolates in float32.
            assert close(gradients(model, replayed), expected_gradients, tolerance=1e-8)
    after = traces(model)
    assert {name: (*now[:6], now[7]) for name, now in after.items()} == {
        name: (*then[:6], then[7]) for name, then in before.items()
    }


def test_a_network_without_a_coarser_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="found no code in HighResNet on a coarser grid than its input"):
        find_bottleneck(monai("HighResNet", 2, 1, 2)(), torch.randn(2, 1, 32, 32))


def test_metadata_of_monai_tensors_travel_along() -> None:
    data = pytest.importorskip("monai.data")
    case, _ = FAST["MONAI BasicUNet"]
    model = case.model(False)
    images = data.MetaTensor(case.images(), meta={"filename": "a"})
    with LatentTap(model, case.spot) as tap:
        logits = model(images)
        replayed = tap.replay(tap.code)
    assert isinstance(logits, data.MetaTensor)
    assert isinstance(replayed, data.MetaTensor)
    assert torch.equal(replayed.as_tensor(), logits.as_tensor())
