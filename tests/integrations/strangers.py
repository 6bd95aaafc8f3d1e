"""Networks from packages that the matrix does not know: how to build them, and which code is theirs.

Which code it is was read off each network's own code, before it was searched: the coarsest tensor that its parts hand
over, the latest where there are several, and what is not classes. A sum of branches is handed over by none of them: it
is the last tensor that all of them come of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stranger:
    """A network of a package.

    Args:
        package: What the package is called where it is installed from.
        name: What the network is called.
        build: Builds it, with random weights.
        layer: Its code as a user writes it; empty where there is none, as it keeps the images' size.
        inputs: Shapes of the images that it takes, or values of other arguments.
    """

    package: str
    name: str
    build: Callable[[], nn.Module]
    layer: str
    inputs: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.package} {self.name}"

    def model(self) -> nn.Module:
        """Build it, or skip the test where its package is not installed, or not as a whole."""
        torch.manual_seed(0)
        try:
            model = self.build().eval()
        except ImportError as error:
            pytest.skip(f"{self.package} is not installed: {error}")
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():  # as of classifiers that start from nothing
                nn.init.kaiming_normal_(weight)
        return model

    def arguments(self) -> tuple[Any, ...]:
        """Draw what it is called with; the same every time."""
        generator = torch.Generator().manual_seed(0)
        return tuple(
            torch.randn(given, generator=generator) if isinstance(given, tuple) else given for given in self.inputs
        )


def made_by(module: str, name: str, /, *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """Return what builds a network by calling something of a module."""
    return lambda: getattr(import_module(module), name)(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def fastai() -> nn.Module:
    body = nn.Sequential(*list(import_module("torchvision").models.resnet18().children())[:-2])
    return made_by("fastai.vision.models.unet", "DynamicUnet", body, 3, (64, 96))()


WIDE: tuple[tuple[int, ...], ...] = ((2, 3, 64, 96),)
SMALL: tuple[tuple[int, ...], ...] = ((2, 3, 32, 48),)
GREY: tuple[tuple[int, ...], ...] = ((2, 1, 32, 48),)
FOUR = {"num_blocks_per_stage": (1, 1, 1), "num_self_attn_per_stage": (0, 0, 1)}


def pytorchcv(module: str, name: str, layer: str, size: tuple[int, int] = (64, 96), **options: Any) -> Stranger:
    build = made_by(f"pytorchcv.models.{module}", name, num_classes=3, **options)
    return Stranger("pytorchcv", name, build, layer, ((2, 3, *size),))


def pywick(module: str, name: str, layer: str, *args: Any, **options: Any) -> Stranger:
    return Stranger(
        "pywick", name, made_by(f"pywick.models.segmentation.{module}", name, *args, **options), layer, WIDE
    )


def x_unet(name: str, layer: str, shape: tuple[int, ...], **options: Any) -> Stranger:
    build = made_by("x_unet", "XUnet", dim=16, channels=3, dim_mults=(1, 2, 4), **FOUR, **options)
    return Stranger("x-unet", name, build, layer, (shape,))


def deepinv(name: str, layer: str, *more: Any, size: tuple[int, int] = (32, 48), **options: Any) -> Stranger:
    return Stranger("deepinv", name, made_by("deepinv.models", name, 3, **options), layer, ((2, 3, *size), *more))


def diffusers(name: str, layer: str, *more: Any, **options: Any) -> Stranger:
    return Stranger("diffusers", name, made_by("diffusers", name, norm_num_groups=4, **options), layer, (*SMALL, *more))


def of(package: str, module: str, name: str, layer: str, inputs: Any, /, *args: Any, **options: Any) -> Stranger:
    return Stranger(package, name, made_by(module, name, *args, **options), layer, inputs)


RELAYNET = {
    **{"num_channels": 1, "num_filters": 64, "kernel_h": 3, "kernel_w": 3, "kernel_c": 1},
    **{"stride_conv": 1, "pool": 2, "stride_pool": 2, "num_class": 3},
}
TWO_LEVELS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
UNET_2D = {
    "block_out_channels": (8, 16, 24),
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}
MULTI_OUTPUT = {"a": {"channels": 1, "activation": "sigmoid"}}
bio = partial(of, "bio-image-unet")
STRANGERS = [
    pytorchcv("segnet", "segnet_cityscapes", "down_stage5[0]"),
    pytorchcv("enet", "enet_cityscapes", "stage2[0]"),
    pytorchcv("unet", "unet_cityscapes", "hg.down_seq.down4"),
    pytorchcv("fcn8sd", "fcn8sd_resnetd50b_voc", "backbone[0]", pretrained_backbone=False),
    pytorchcv("icnet", "icnet_resnetd50b_cityscapes", "branch2[0]", in_size=(64, 96)),
    pytorchcv("linknet", "linknet_cityscapes", "hg.down_seq.down4"),
    pytorchcv("danet", "danet_resnetd50b_cityscapes", "backbone[0]"),
    pytorchcv("fastscnn", "fastscnn_cityscapes", "pool", (128, 192), in_size=(128, 192)),
    pytorchcv("bisenet", "bisenet_resnet18_celebamaskhq", "backbone[2]", in_size=(64, 96)),
    pytorchcv("contextnet", "ctxnet_cityscapes", "features_low", (128, 192)),
    # The encoder returns classes.
    pytorchcv("sinet", "sinet_cityscapes", "encoder.stage2[0]", (256, 256), in_size=(256, 256)),
    pytorchcv("cgnet", "cgnet_cityscapes", "features"),
    pytorchcv("lednet", "lednet_cityscapes", "encoder", (128, 192)),
    # The classifier returns classes; what is inside is coarser than what it is given, as it pads nothing.
    pywick("fcn16s", "FCN16VGG", "score_fr.5", 3, pretrained=False),
    pywick("tiramisu", "FCDenseNet", "bottleneck", 3, down_blocks=(2, 2, 2), up_blocks=(2, 2, 2), bottleneck_layers=2),
    pywick("fusionnet", "FusionNet", "middle", 3),
    pywick("unet_res", "UNetRes", "pool4", 3),
    # The block itself reads the code that it returns, so that it is replaced inside.
    pywick("frrn1", "frrn", "encoding_frru_2_384_16_1.conv2", 3, "A"),
    pywick("gcnnets.gcn", "GCN", "layer4", 3, pretrained=False),
    pywick("duc_hdc", "ResNetDUC", "layer4", 3, pretrained=False),
    x_unet("XUnet", "mid_after", (2, 3, 32, 48), nested_unet_depths=(0, 0, 0)),
    x_unet("XUnet, nested", "mid_after", (2, 3, 64, 64), nested_unet_depths=(3, 2, 1)),
    x_unet("XUnet, films", "mid_after", (2, 3, 2, 32, 48), nested_unet_depths=(0, 0, 0), frame_kernel_size=3),
    of(
        *("denoising-diffusion-pytorch", "denoising_diffusion_pytorch", "Unet", "mid_block2"),
        (*SMALL, torch.tensor([3, 7])),
        dim=16,
        dim_mults=(1, 2, 4),
    ),
    of(
        *("segformer-pytorch", "segformer_pytorch", "Segformer", "mit[3]", ((2, 3, 64, 64),)),
        dims=(8, 16, 24, 32),
        heads=(1, 1, 1, 1),
        num_layers=1,
        decoder_dim=16,
        num_classes=3,
    ),
    of(
        *("unet", "unet", "UNet2D", "bottom_block", ((2, 1, 64, 96),)),
        out_classes=2,
        num_encoding_blocks=4,
        out_channels_first_layer=8,
        padding=True,
        normalization="batch",
    ),
    of(
        *("unet", "unet", "UNet3D", "bottom_block", ((2, 1, 16, 16, 24),)),
        out_classes=2,
        num_encoding_blocks=3,
        out_channels_first_layer=4,
        padding=True,
        residual=True,
    ),
    bio("bio_image_unet.unet.unet", "Unet", "middle_conv2", GREY, n_filter=4),
    bio("bio_image_unet.unet.attention_unet", "AttentionUnet", "middle_conv2", GREY, n_filter=4),
    bio("bio_image_unet.siam_unet.siam_unet", "Siam_UNet", "middle_conv2", GREY * 2, n_filter=4),
    bio(
        "bio_image_unet.multi_output_unet.multi_output_nested_unet",
        "MultiOutputNestedUNet",
        "conv4_0",
        GREY,
        *(1, MULTI_OUTPUT),
        n_filter=4,
    ),
    of("torchgeo", "torchgeo.models.farseg", "FarSeg", "backbone.layer4", WIDE, "resnet18", 3, False),
    # Its images have an axis of time, which its codes have not.
    of(
        *("torchgeo", "torchgeo.models.fcsiam", "FCSiamDiff", "encoder[5]", ((2, 2, 3, 64, 96),), "resnet18"),
        encoder_weights=None,
        classes=3,
    ),
    of("torchgeo", "torchgeo.models.fcn", "FCN", "", SMALL, 3, 3, 8),
    of("relaynet-pytorch", "relaynet_pytorch.relay_net", "ReLayNet", "bottleneck", ((2, 1, 64, 96),), RELAYNET),
    of("ternausnet", "ternausnet.models", "UNet11", "pool", WIDE, pretrained=False),
    Stranger("fastai", "DynamicUnet", fastai, "layers.3", WIDE),
    of("ivadomed", "ivadomed.models", "Unet", "encoder[0][3]", GREY, 1, 3, depth=3, n_filters=8),
    of("ivadomed", "ivadomed.models", "Modified3DUNet", "conv3d_c5", ((2, 1, 32, 32, 48),), 1, 2, n_filters=4),
    of("ivadomed", "ivadomed.models", "Countception", "", GREY, 1, 2),
    deepinv("UNet", "Conv4", out_channels=3, scales=4),
    deepinv("DRUNet", "m_down3", 0.1, out_channels=3, nc=(8, 16, 24, 32), nb=1, pretrained=None),
    deepinv("SCUNet", "m_down3", size=(64, 64), config=(2,) * 7, dim=64, pretrained=None),
    deepinv(
        "Restormer",
        "latent",
        out_channels=3,
        dim=8,
        num_blocks=(1,) * 4,
        num_refinement_blocks=1,
        heads=(1,) * 4,
        pretrained=None,
    ),
    deepinv("DnCNN", "", out_channels=3, depth=5, nf=8, pretrained=None),
    diffusers("UNet2DModel", "mid_block", 5, sample_size=32, **UNET_2D),
    diffusers("AutoencoderKL", "quant_conv", latent_channels=4, **TWO_LEVELS),
    diffusers("VQModel", "post_quant_conv", latent_channels=3, num_vq_embeddings=16, **TWO_LEVELS),
    of("torch-em", "torch_em.model.unet", "UNet2d", "base", GREY, 1, 2, depth=3, initial_features=8),
    of(
        *("torch-em", "torch_em.model.unet", "AnisotropicUNet", "base", ((2, 1, 8, 32, 48),), 1, 2),
        scale_factors=[[1, 2, 2], [2, 2, 2]],
        initial_features=4,
    ),
    of(
        *("pytorch3dunet", "pytorch3dunet.unet3d.model", "ResidualUNet3D", "encoders.2", ((2, 1, 16, 16, 24),), 1, 2),
        f_maps=8,
        num_levels=3,
        num_groups=4,
    ),
    of("octopytorch", "models.tiramisu", "Tiramisu", "bottleneck", WIDE, 3, 2),
    of("seisbench", "seisbench.models", "PhaseNet", "down_branch.4.1", ((2, 3, 3001),)),
    of(
        *("demucs", "demucs.demucs", "Demucs", "encoder.2", ((2, 1, 4096),), ["a", "b"]),
        audio_channels=1,
        channels=8,
        depth=3,
        lstm_layers=1,
        resample=False,
    ),
    of("facexlib", "facexlib.parsing.bisenet", "BiSeNet", "cp.resnet[2]", WIDE, 3),
    of("iunets", "iunets", "iUNet", "encoder_modules.2.0", ((2, 4, 32, 48),), 4, architecture=(1, 1, 1), dim=2),
    of(
        *("careamics", "careamics.models.unet", "UNet", "encoder[0]", GREY),
        conv_dims=2,
        in_channels=1,
        num_classes=2,
        depth=2,
        num_channels_init=8,
    ),
    of("torchseg", "torchseg", "Unet", "encoder[5]", WIDE, "resnet18", encoder_weights=None, classes=2),
    of(
        *("segmentation-models-pytorch-3d", "segmentation_models_pytorch_3d", "Unet", "encoder[5]"),
        ((1, 3, 32, 32, 64),),
        "resnet18",
        encoder_weights=None,
        classes=2,
    ),
    # Hooks every part for as long as a pass takes.
    of(
        *("efficientunet-pytorch", "efficientunet", "get_efficientunet_b0", "encoder.head_swish", WIDE),
        out_channels=2,
        pretrained=False,
    ),
    of("patchgan", "patchgan", "UNet", "encoder.6", ((2, 3, 256, 256),), 3, 2, 8),
    of("segment-torch", "segment_torch.unet", "UNet", "layers_downsample.dropout_3", WIDE, 3, 2, [4, 8, 16, 32]),
    of(
        *("segment-torch", "segment_torch.attention_unet", "AttentionUNet", "layers_downsample.dropout_3", WIDE, 3, 2),
        [4, 8, 16, 32],
    ),
    of(
        *("biom3d", "biom3d.models.unet3d_vgg_deep", "UNet", "encoder[3]", ((2, 1, 16, 16, 24),)),
        num_pools=[3, 3, 3],
        num_classes=2,
        factor=8,
    ),
    of("pixseg", "pixseg.models.enet", "ENet", "section3_convs", WIDE, 3),
    of("unet3d", "unet3d.linknet3d", "LinkNet3d", "downs.2", ((2, 1, 32, 32, 32),), 1, 2, 8, 3),
]

MISSED = {
    "torchgeo FCSiamDiff": "its images have an axis more than its codes",
    "segment-torch AttentionUNet": "the gate that skips are attended by is as wide as the code, and comes after it",
}

UNREPLAYED = {"iunets iUNet": "its own functions free the memory of what they are given"}


def output_of(output: Any) -> list[Tensor]:
    """List the tensors of what a network returns."""
    from tests.support.trees import leaves

    return [tensor for tensor in leaves(output) if tensor.is_floating_point()]
