"""Rows of nnU-Net's networks, with the kernels and strides of its plans.

The encoder returns a list of features, fine to coarse, one for each stage: the last is the code. With deep supervision
the decoder returns a list of logits, coarser and coarser, in training and in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from latentaug.layout import TOKENS
from tests.integrations.rows import Row

LIBRARY = "nnU-Net"
PLANE: dict[str, Any] = {
    "conv_op": nn.Conv2d,
    "norm_op": nn.InstanceNorm2d,
    "kernel_sizes": [[3, 3]] * 4,
    "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
}
# Slices far apart: the first stages see each by itself, and the grid gets coarser across them only once.
SLICES: dict[str, Any] = {
    "conv_op": nn.Conv3d,
    "norm_op": nn.InstanceNorm3d,
    "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
}


def unet(name: str, plan: dict[str, Any], **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("dynamic_network_architectures.architectures.unet")
        return getattr(library, name)(
            input_channels=1,
            n_stages=4,
            features_per_stage=[4, 8, 16, 32],
            num_classes=2,
            n_conv_per_stage_decoder=1,
            norm_op_kwargs={"affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            **plan,
            **options,
        )

    return build


def primus(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("dynamic_network_architectures.architectures.primus")
        return library.Primus(1, 36, (8, 8, 8), 2, eva_depth=2, eva_numheads=2, input_shape=(16, 32, 32), **options)

    return build


def row(name: str, note: str, *, quick: bool = False, **options: Any) -> Row:
    plane = note.startswith("2-D")
    return Row(
        library=LIBRARY,
        name=f"{name} {note}",
        build=unet(name, PLANE if plane else SLICES, **options),
        layer="encoder",
        path=(3,),
        shape=(2, 1, 64, 96) if plane else (2, 1, 8, 64, 48),
        code=(2, 32, 8, 12) if plane else (2, 32, 4, 8, 6),
        quick=quick,
    )


ROWS = [
    row("PlainConvUNet", "2-D", n_conv_per_stage=1),
    row("PlainConvUNet", "2-D, deep supervision", n_conv_per_stage=1, deep_supervision=True, quick=True),
    row("PlainConvUNet", "3-D anisotropic", n_conv_per_stage=1),
    row("PlainConvUNet", "3-D anisotropic, deep supervision", n_conv_per_stage=1, deep_supervision=True),
    row("PlainConvUNet", "2-D, dropout", n_conv_per_stage=1, dropout_op=nn.Dropout2d, dropout_op_kwargs={"p": 0.3}),
    row("ResidualEncoderUNet", "2-D", n_blocks_per_stage=1),
    row("ResidualEncoderUNet", "2-D, deep supervision", n_blocks_per_stage=1, deep_supervision=True),
    row("ResidualEncoderUNet", "3-D anisotropic", n_blocks_per_stage=1),
    row("ResidualEncoderUNet", "3-D anisotropic, deep supervision", n_blocks_per_stage=1, deep_supervision=True),
    row("ResidualUNet", "2-D", n_blocks_per_stage=1),
    row("ResidualUNet", "3-D anisotropic, deep supervision", n_blocks_per_stage=1, deep_supervision=True),
    # A transformer of patches, and its decoder; it returns tokens, and which of them it kept.
    Row(
        library=LIBRARY,
        name="Primus 3-D",
        build=primus(),
        layer="eva",
        path=(0,),
        shape=(2, 1, 16, 32, 32),
        code=(2, 32, 36),
        layout=TOKENS,
        timed=(1, 1, 16, 32, 32),
    ),
]
