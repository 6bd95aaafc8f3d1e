"""Networks that steps and replays are timed on, and the size of the batches that they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Row:
    """A network, and the images it is timed on."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    @property
    def size(self) -> str:
        """The batch, as a table shows it."""
        return "x".join(map(str, self.shape))


def of(library: str, name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    """Build a network of a library once it is wanted, in any process."""
    return partial(_built, library, name, args, options)


def _built(library: str, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> nn.Module:
    network: nn.Module = getattr(import_module(library), name)(*args, **options)
    return network


def smp(name: str, encoder: str) -> Callable[[], nn.Module]:
    return of("segmentation_models_pytorch", name, encoder, encoder_weights=None, classes=4)


def segformer() -> nn.Module:
    transformers = import_module("transformers")
    network: nn.Module = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=4))
    return network


def nnunet() -> nn.Module:
    network: nn.Module = import_module("dynamic_network_architectures.architectures.unet").PlainConvUNet(
        input_channels=1,
        n_stages=6,
        features_per_stage=(32, 64, 128, 256, 512, 512),
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=(1, 2, 2, 2, 2, 2),
        n_conv_per_stage=2,
        num_classes=4,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )
    return network


MONAI = "monai.networks.nets"
UNET = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2}
DYNUNET = {"kernel_size": [3] * 5, "strides": [1, 2, 2, 2, 2], "upsample_kernel_size": [2] * 4}
ROWS = [
    Row("smp Unet resnet34", smp("Unet", "resnet34"), (2, 3, 256, 256)),
    Row("smp UnetPlusPlus resnet18", smp("UnetPlusPlus", "resnet18"), (2, 3, 192, 192)),
    Row("smp FPN resnet50", smp("FPN", "resnet50"), (2, 3, 256, 256)),
    Row("smp DeepLabV3Plus resnet50", smp("DeepLabV3Plus", "resnet50"), (2, 3, 192, 192)),
    Row("smp Segformer mit_b2", smp("Segformer", "mit_b2"), (2, 3, 192, 192)),
    Row("MONAI BasicUNet 2-D", of(MONAI, "BasicUNet", 2, 1, 4), (4, 1, 192, 192)),
    Row("MONAI UNet 2-D", of(MONAI, "UNet", 2, 1, 4, **UNET), (4, 1, 256, 256)),
    Row("MONAI UNet 3-D", of(MONAI, "UNet", 3, 1, 4, **UNET), (1, 1, 64, 64, 64)),
    Row("transformers SegFormer b0", segformer, (2, 3, 256, 256)),
    Row("nnU-Net PlainConvUNet 2-D", nnunet, (2, 1, 192, 192)),
    Row(
        "torchvision DeepLabV3 mobilenet_v3_large",
        of(
            "torchvision.models.segmentation",
            "deeplabv3_mobilenet_v3_large",
            weights=None,
            weights_backbone=None,
            num_classes=4,
        ),
        (2, 3, 256, 256),
    ),
]


RESNET18 = of("segmentation_models_pytorch", "Unet", "resnet18", encoder_weights=None, in_channels=1, classes=4)
UNETS = [
    Row("smp Unet resnet18", RESNET18, (20, 1, 80, 80)),
    Row("smp Unet resnet34", smp("Unet", "resnet34"), (4, 3, 256, 256)),
]
DYNUNET_3D = of(MONAI, "DynUNet", 3, 1, 4, filters=[16, 32, 64, 128, 256], **DYNUNET)
TRAINED = [
    *UNETS,
    Row("MONAI DynUNet 3-D", DYNUNET_3D, (1, 1, 96, 96, 96)),
    Row("FTN", of("latentaug", "FTN", 1, 4), (20, 1, 192, 192)),
]
"""Networks on batches that they would be trained on."""

STEPPED = [
    *UNETS,
    Row("MONAI DynUNet 3-D", DYNUNET_3D, (1, 1, 64, 64, 64)),
    Row("FTN", of("latentaug", "FTN", 1, 4), (20, 1, 192, 192)),
    Row("FTN, three levels", of("latentaug", "FTN", 1, 4, depth=3), (10, 1, 80, 80)),
]
"""Networks whose whole steps are timed, variant by variant."""

LITTLE = [Row("FTN", of("latentaug", "FTN", 1, 4, width=2, depth=2), (2, 1, 32, 32))]
LITTLE_UNETS = [Row("smp Unet resnet18", RESNET18, (2, 1, 64, 64))]
