"""Rows of segmentation-models-pytorch: each of its architectures on several families of encoders.

The code is the coarsest of the features that the encoder returns. Its channels and its stride are those that the
library states for the encoder: stride 32 at depth 5 unless the architecture dilates the encoder or cuts it off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from tests.integrations.rows import Row

LIBRARY = "segmentation-models-pytorch"
WIDE, TALL, SQUARE = (64, 96), (96, 64), (64, 64)

# Decoders narrower than by default; those missing here are light enough as they are.
NARROW: dict[str, dict[str, Any]] = {
    "Unet": {"decoder_channels": (64, 32, 16, 16, 16)},
    "UnetPlusPlus": {"decoder_channels": (64, 32, 16, 16, 16)},
    "MAnet": {"decoder_channels": (64, 32, 16, 16, 16)},
    "FPN": {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32},
    "DeepLabV3": {"decoder_channels": 64},
    "UPerNet": {"decoder_channels": 64},
    "Segformer": {"decoder_segmentation_channels": 64},
    "DPT": {"decoder_intermediate_channels": (64, 128, 256, 256), "decoder_fusion_channels": 64},
}


def row(
    name: str,
    code: tuple[int, ...],
    *,
    note: str = "",
    path: tuple[Any, ...] = (5,),
    size: tuple[int, int] = WIDE,
    channels: int = 3,
    classes: int = 2,
    frozen: bool = False,
    quick: bool = False,
    timed: tuple[int, ...] | None = None,
    **options: Any,
) -> Row:
    """Describe a model, named by its architecture and encoder, whose encoder returns a `code` [C, H, W] at `path`."""
    architecture, encoder = name.split()

    def build() -> nn.Module:
        library = getattr(pytest.importorskip("segmentation_models_pytorch"), architecture)
        widths = {**NARROW.get(architecture, {}), **options}
        model: Any = library(encoder, encoder_weights=None, in_channels=channels, classes=classes, **widths)
        if frozen:
            model.freeze_encoder()
        return model

    return Row(
        library=LIBRARY,
        name=f"{name}, {note}" if note else name,
        build=build,
        layer="encoder",
        path=path,
        shape=(2, channels, *size),
        code=(2, *code),
        classes=classes,
        quick=quick,
        timed=timed,
    )


def vit(encoder: str, code: tuple[int, ...], *, size: tuple[int, int] = WIDE, **options: Any) -> Row:
    """Describe a DPT on a vision transformer, which returns the grids of four blocks, and then their prefix tokens.

    It is made narrow, and built for the size of the images. With `dynamic_img_size` these are square, as timm resamples
    learnt position embeddings to any other size, and to all that are not square, in float32.
    """
    return row(f"DPT tu-{encoder}", code, path=(0, 3), size=size, img_size=size, embed_dim=48, num_heads=3, **options)


# It sees images of this size alone.
SMALL_SWIN: dict[str, Any] = {"img_size": WIDE, "embed_dim": 24, "num_heads": (1, 2, 4, 8)}
DEPTH_4: dict[str, Any] = {"encoder_depth": 4, "decoder_channels": (64, 32, 16, 16)}


def with_pairs_marked(rows: Iterable[Row]) -> Iterator[Row]:
    """Mark those as `paired` whose architecture and encoder rows before them have, unless a note says what is new."""
    seen: set[str] = set()
    for one in rows:
        name, _, note = one.name.partition(", ")
        yield replace(one, paired=not note and seen.issuperset(name.split()))
        seen.update(name.split())


MODELS = [
    row("Unet resnet18", (512, 2, 3), quick=True),
    row("Unet resnet18", (512, 3, 2), note="1 channel, 1 class", channels=1, classes=1, size=TALL),
    row("Unet resnet18", (128, 8, 12), note="depth 3", path=(3,), encoder_depth=3, decoder_channels=(64, 32, 16)),
    row("Unet resnet18", (512, 2, 2), note="with labels", size=SQUARE, aux_params={"classes": 3, "dropout": 0.2}),
    row("Unet resnet18", (512, 2, 2), note="frozen encoder", size=SQUARE, frozen=True),
    row("Unet efficientnet-b0", (320, 2, 3)),
    row("Unet mit_b0", (256, 2, 3)),
    row("Unet densenet121", (1024, 2, 2), size=SQUARE),
    row("Unet vgg11_bn", (512, 2, 2), size=SQUARE),
    row("Unet tu-convnext_atto", (320, 2, 3)),
    row("Unet tu-hrnet_w18_small", (1024, 2, 3)),
    row("Unet tu-mobilenetv3_small_050", (288, 2, 3), note="scSE attention", decoder_attention_type="scse"),
    row("UnetPlusPlus resnet18", (256, 4, 4), note="depth 4", path=(4,), size=SQUARE, **DEPTH_4),
    row("UnetPlusPlus efficientnet-b0", (320, 2, 2), size=SQUARE),
    row("UnetPlusPlus mobilenet_v2", (1280, 2, 3)),
    row("UnetPlusPlus tu-lcnet_050", (256, 2, 3)),
    row("UnetPlusPlus tu-ghostnet_050", (80, 2, 3)),
    row("MAnet resnet18", (512, 2, 2), size=SQUARE),
    row("MAnet efficientnet-b0", (320, 2, 3)),
    row("MAnet mit_b0", (256, 2, 2), size=SQUARE),
    row("MAnet tu-mobilenetv3_small_050", (288, 2, 3)),
    row("MAnet tu-tiny_vit_5m_224", (320, 2, 2), size=SQUARE),
    row("Linknet resnet18", (512, 2, 3)),
    row("Linknet mobilenet_v2", (1280, 2, 2), size=SQUARE),
    row("Linknet tu-edgenext_xx_small", (168, 2, 3)),
    row("Linknet tu-ghostnet_050", (80, 2, 3)),
    row("FPN resnet18", (512, 2, 3)),
    row("FPN mit_b0", (256, 2, 3)),
    row("FPN tu-dla46_c", (256, 2, 3)),
    row("FPN tu-swin_tiny_patch4_window7_224", (192, 2, 3), timed=(2, 3, *WIDE), **SMALL_SWIN),
    row("FPN tu-tf_efficientnetv2_b0", (192, 2, 2), size=SQUARE),
    row("FPN tu-test_nfnet", (192, 2, 3)),
    row("PSPNet resnet18", (128, 8, 8), path=(3,), size=SQUARE),
    row("PSPNet efficientnet-b0", (40, 8, 12), path=(3,)),
    row("PSPNet mit_b0", (64, 8, 12), path=(3,)),
    row("PSPNet mobilenet_v2", (32, 8, 12), path=(3,)),
    row("PSPNet tu-convnextv2_atto", (80, 8, 12), path=(3,)),
    row("PSPNet tu-mobilenetv3_small_050", (288, 2, 3), note="depth 5", encoder_depth=5, upsampling=32),
    row("PAN resnet18", (512, 8, 8), size=(128, 128)),
    row("PAN efficientnet-b0", (320, 8, 8), size=(128, 128)),
    row("PAN mit_b0", (256, 8, 8), size=(128, 128)),
    row("PAN mobilenet_v2", (1280, 8, 8), size=(128, 128)),
    row("PAN tu-lcnet_050", (256, 8, 16), size=(128, 256)),
    row("DeepLabV3 resnet18", (512, 8, 8), size=SQUARE),
    row("DeepLabV3 mit_b0", (256, 8, 8), size=SQUARE),
    row("DeepLabV3 mobilenet_v2", (1280, 8, 12)),
    row("DeepLabV3 tu-convnext_atto", (320, 8, 12)),
    row("DeepLabV3 efficientnet-b0", (320, 4, 6), note="stride 16", encoder_output_stride=16),
    row("DeepLabV3Plus resnet18", (512, 4, 6)),
    row("DeepLabV3Plus efficientnet-b0", (320, 4, 4), size=SQUARE),
    row("DeepLabV3Plus mit_b0", (256, 4, 6)),
    row("DeepLabV3Plus mobileone_s0", (1024, 4, 4), size=SQUARE),
    row("DeepLabV3Plus tu-regnetx_002", (368, 8, 12), note="stride 8", encoder_output_stride=8),
    row("UPerNet resnet18", (512, 2, 3)),
    row("UPerNet vgg11_bn", (512, 2, 2), size=SQUARE),
    row("UPerNet mit_b0", (256, 2, 3)),
    row("UPerNet tu-swin_tiny_patch4_window7_224", (192, 2, 3), timed=(2, 3, *WIDE), **SMALL_SWIN),
    row("UPerNet tu-inception_next_atto", (320, 2, 3)),
    row("Segformer resnet18", (512, 2, 3)),
    row("Segformer mit_b0", (256, 2, 2), size=SQUARE),
    row("Segformer mit_b0", (256, 2, 3), note="logits at a quarter", upsampling=1),
    row("Segformer efficientnet-b0", (320, 2, 3)),
    row("Segformer tu-pvt_v2_b0", (256, 2, 3)),
    row("Segformer tu-mobilevit_xxs", (320, 2, 3)),
    vit("vit_tiny_patch16_224", (48, 4, 4), size=SQUARE, dynamic_img_size=True),
    vit("deit_tiny_distilled_patch16_224", (48, 4, 4), size=SQUARE, dynamic_img_size=True),
    vit("vit_small_patch14_reg4_dinov2", (48, 4, 6), patch_size=16, timed=(2, 3, *WIDE)),
    vit("vit_small_patch16_dinov3", (48, 4, 6), dynamic_img_size=True, decoder_readout="add"),
    vit("beit_base_patch16_224", (48, 4, 6), timed=(2, 3, *WIDE)),
    vit("xcit_nano_12_p16_224", (48, 4, 6), decoder_readout="ignore"),
    vit("vit_tiny_r_s16_p8_224", (48, 2, 2), size=SQUARE, dynamic_img_size=True),
    row("DPT tu-convnext_atto", (320, 2, 3), path=(0, 3), decoder_readout="ignore"),
]
ROWS = list(with_pairs_marked(MODELS))
