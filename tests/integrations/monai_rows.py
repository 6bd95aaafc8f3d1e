"""Rows of MONAI."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from torch import nn

from latentaug.layout import TOKENS
from tests.integrations.rows import Row


def monai(name: str, *args: Any, since: str = "1.5", **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        pytest.importorskip("monai", minversion=since)
        library = pytest.importorskip("monai.networks.nets")
        return getattr(library, name)(*args, **options)

    return build


def dynunet(dimensions: int, kernels: list[Any], strides: list[Any], **options: Any) -> Callable[[], nn.Module]:
    return monai("DynUNet", dimensions, 1, 2, kernels, strides, strides[1:], filters=[4, 8, 16, 32], **options)


def swin(dimensions: int, **options: Any) -> Callable[[], nn.Module]:
    return monai("SwinUNETR", 1, 2, spatial_dims=dimensions, feature_size=12, depths=(1, 1, 1, 1), **options)


def unetr(dimensions: int, size: tuple[int, ...], **options: Any) -> Callable[[], nn.Module]:
    return monai(
        *("UNETR", 1, 2, size),
        **dict(feature_size=4, hidden_size=36, mlp_dim=48, num_heads=4, spatial_dims=dimensions, **options),
    )


def dints() -> nn.Module:
    every_path = np.ones((3, 7))  # all seven ways between three depths, in each of three blocks
    space = monai("TopologyInstance", [every_path, every_path], 0.125, num_blocks=3, num_depths=3)()
    return monai("DiNTS", space, 1, 2)()


row = partial(Row, library="MONAI")
IMAGE, VOLUME = (2, 1, 64, 96), (1, 1, 32, 32, 64)
# Volumes are slow; what the modes change shows in two dimensions, so large models are replayed in one of them in three.
EVAL, TRAIN = (False,), (True,)
FEW = (4, 8, 16, 32, 64, 8)
# The strides of an anisotropic volume: its third axis is halved once less than the others.
SLICES = [1, (2, 2, 1), 2, 2]

ROWS = [
    row(
        name="BasicUNet 2-D",
        build=monai("BasicUNet", 2, 1, 2, features=FEW),
        layer="down_4",
        shape=(2, 1, 64, 64),
        code=(2, 64, 4, 4),
        quick=True,
    ),
    row(
        name="BasicUNet 2-D, odd sizes",
        build=monai("BasicUNet", 2, 1, 2, features=FEW, dropout=0.2),
        layer="down_4",
        shape=(2, 1, 70, 90),
        code=(2, 64, 4, 5),
    ),
    row(
        name="BasicUNet 3-D",
        build=monai("BasicUNet", 3, 1, 2, features=FEW),
        layer="down_4",
        shape=(2, 1, 16, 16, 32),
        code=(2, 64, 1, 1, 2),
        modes=EVAL,
    ),
    # It returns a list, four outputs of which only the last depends on the code.
    row(
        name="BasicUNetPlusPlus 2-D, deep supervision",
        build=monai("BasicUNetPlusPlus", 2, 1, 2, features=FEW, deep_supervision=True),
        layer="conv_4_0",
        shape=IMAGE,
        code=(2, 64, 4, 6),
    ),
    row(
        name="BasicUNetPlusPlus 3-D",
        build=monai("BasicUNetPlusPlus", 3, 1, 2, features=FEW),
        layer="conv_4_0",
        shape=(1, 1, 16, 16, 32),
        code=(1, 64, 1, 1, 2),
        modes=EVAL,
    ),
    # A UNet nests one skip connection in another. What the innermost returns, its input beside the bottom layer's
    # output, is all that goes up from the coarsest grid; the bottom layer alone is not.
    row(
        name="UNet 2-D",
        build=monai("UNet", 2, 1, 2, (4, 8, 16, 32), (2, 2, 2), norm="batch", dropout=0.2),
        layer="model.1.submodule.1.submodule.1",
        shape=IMAGE,
        code=(2, 16 + 32, 8, 12),
    ),
    row(
        name="UNet 2-D, residual units",
        build=monai("UNet", 2, 1, 2, (4, 8, 16, 32, 48), (2, 2, 2, 2), num_res_units=2),
        layer="model.1.submodule.1.submodule.1.submodule.1",
        shape=IMAGE,
        code=(2, 32 + 48, 4, 6),
    ),
    row(
        name="UNet 3-D, residual units",
        build=monai("UNet", 3, 1, 2, (4, 8, 16, 32), (2, 2, 2), num_res_units=2),
        layer="model.1.submodule.1.submodule.1",
        shape=(2, 1, 16, 16, 32),
        code=(2, 16 + 32, 2, 2, 4),
    ),
    row(
        name="UNet 3-D, anisotropic",
        build=monai("UNet", 3, 1, 2, (4, 8, 16, 32), ((2, 2, 1), 2, 2), (3, 3, 1), (3, 3, 1)),
        layer="model.1.submodule.1.submodule.1",
        shape=(2, 1, 32, 48, 8),
        code=(2, 16 + 32, 4, 6, 2),
    ),
    row(
        name="AttentionUnet 2-D",
        build=monai("AttentionUnet", 2, 1, 2, (4, 8, 16, 32), (2, 2, 2), dropout=0.2),
        layer="model.1.submodule.1.submodule.1.submodule",
        shape=IMAGE,
        code=(2, 32, 8, 12),
    ),
    row(
        name="AttentionUnet 3-D",
        build=monai("AttentionUnet", 3, 1, 2, (4, 8, 16), (2, 2)),
        layer="model.1.submodule.1.submodule",
        shape=(2, 1, 16, 16, 24),
        code=(2, 16, 4, 4, 6),
    ),
    # Its skip layers leave the outputs for deep supervision in a list that the model keeps.
    row(
        name="DynUNet 2-D",
        build=dynunet(2, [3] * 4, [1, 2, 2, 2], dropout=0.2),
        layer="bottleneck",
        shape=IMAGE,
        code=(2, 32, 8, 12),
    ),
    row(
        name="DynUNet 2-D, deep supervision",
        build=dynunet(2, [3] * 4, [1, 2, 2, 2], deep_supervision=True, deep_supr_num=2),
        layer="bottleneck",
        shape=IMAGE,
        code=(2, 32, 8, 12),
    ),
    row(
        name="DynUNet 3-D, anisotropic",
        build=dynunet(3, [(3, 3, 1), (3, 3, 1), 3, 3], SLICES, res_block=True),
        layer="bottleneck",
        shape=(2, 1, 32, 48, 16),
        code=(2, 32, 4, 6, 4),
    ),
    row(
        name="DynUNet 3-D, anisotropic, deep supervision",
        build=dynunet(3, [(3, 3, 1), (3, 3, 1), 3, 3], SLICES, deep_supervision=True, deep_supr_num=2),
        layer="bottleneck",
        shape=(2, 1, 32, 48, 16),
        code=(2, 32, 4, 6, 4),
    ),
    row(
        name="SegResNet 2-D",
        build=monai("SegResNet", 2, dropout_prob=0.2),
        layer="down_layers.3",
        shape=IMAGE,
        code=(2, 64, 8, 12),
    ),
    row(
        name="SegResNet 3-D",
        build=monai("SegResNet", 3, blocks_down=(1, 1, 1, 1)),
        layer="down_layers.3",
        shape=(2, 1, 16, 16, 24),
        code=(2, 64, 2, 2, 3),
    ),
    # In train mode it returns the loss of an autoencoder on the same code, drawn from a normal distribution.
    row(
        name="SegResNetVAE 2-D",
        build=monai("SegResNetVAE", (64, 96), spatial_dims=2, vae_nz=16, blocks_down=(1, 1, 1, 1)),
        layer="down_layers.3",
        shape=IMAGE,
        code=(2, 64, 8, 12),
        timed=IMAGE,  # the one size that it is built for
    ),
    row(
        name="SegResNetVAE 3-D",
        build=monai("SegResNetVAE", (16, 16, 32), vae_estimate_std=True, vae_nz=16, blocks_down=(1, 1, 1, 1)),
        layer="down_layers.3",
        shape=(2, 1, 16, 16, 32),
        code=(2, 64, 2, 2, 4),
    ),
    row(
        name="SegResNetDS 2-D, deep supervision",
        build=monai("SegResNetDS", 2, 8, 1, 2, blocks_down=(1, 1, 1), dsdepth=2),
        layer="encoder",
        path=(2,),
        shape=IMAGE,
        code=(2, 32, 16, 24),
    ),
    row(
        name="SegResNetDS 3-D, anisotropic, deep supervision",
        build=monai("SegResNetDS", 3, 4, 1, 2, blocks_down=(1, 1, 1, 1), dsdepth=3, resolution=(1, 1, 4)),
        layer="encoder",
        path=(3,),
        shape=(2, 1, 32, 48, 8),
        code=(2, 32, 4, 6, 4),  # strides 2 along the third axis, whose voxels are four times as long, once only
    ),
    row(
        name="SegResNetDS2 2-D, two decoders",
        build=monai("SegResNetDS2", 2, 8, 1, 2, blocks_down=(1, 1, 1)),
        layer="encoder",
        path=(2,),
        shape=IMAGE,
        code=(2, 32, 16, 24),
    ),
    # Its decoder drops channels of the code; half of them, the default, would leave a mask of the other half no choice.
    row(
        name="VNet 2-D",
        build=monai("VNet", 2, 1, 2, dropout_dim=2, dropout_prob_up=(0.2, 0.5)),
        layer="down_tr256",
        shape=(2, 1, 32, 48),
        code=(2, 256, 2, 3),
    ),
    row(
        name="VNet 3-D",
        build=monai("VNet", 3, 1, 2, dropout_prob_up=(0.2, 0.5)),
        layer="down_tr256",
        shape=(1, 1, 16, 16, 32),
        code=(1, 256, 1, 1, 2),
        modes=TRAIN,
    ),
    # The transformer returns its last tokens, and all earlier ones as skips; grids are made of them in functional code.
    row(
        name="UNETR 2-D",
        build=unetr(2, (64, 96), dropout_rate=0.2),
        layer="vit",
        path=(0,),
        layout=TOKENS,
        shape=IMAGE,
        code=(2, 4 * 6, 36),
        timed=IMAGE,  # the one size that it is built for
    ),
    row(
        name="UNETR 3-D",
        build=unetr(3, (16, 32, 32), proj_type="perceptron"),
        layer="vit",
        path=(0,),
        layout=TOKENS,
        shape=(1, 1, 16, 32, 32),
        code=(1, 1 * 2 * 2, 36),
        modes=EVAL,
    ),
    # The last hidden state of the transformer goes through one more block on its way to the decoder.
    row(
        name="SwinUNETR 2-D",
        build=swin(2, drop_rate=0.1, dropout_path_rate=0.1),
        layer="encoder10",
        shape=IMAGE,
        code=(2, 192, 2, 3),
    ),
    row(
        name="SwinUNETR 2-D, checkpointed",
        build=swin(2, use_checkpoint=True, drop_rate=0.1, dropout_path_rate=0.1),
        layer="encoder10",
        shape=IMAGE,
        code=(2, 192, 2, 3),
    ),
    row(
        name="SwinUNETR V2 2-D",
        build=swin(2, use_v2=True, downsample="mergingv2"),
        layer="encoder10",
        shape=IMAGE,
        code=(2, 192, 2, 3),
    ),
    row(
        name="SwinUNETR 3-D, checkpointed",
        build=swin(3, window_size=4, use_checkpoint=True),
        layer="encoder10",
        shape=VOLUME,
        code=(1, 192, 1, 1, 2),
        modes=EVAL,
    ),
    # The decoder gets the features of the encoder as a list, from fine to coarse.
    row(
        name="FlexibleUNet 2-D efficientnet-b0",
        build=monai("FlexibleUNet", 1, 2, "efficientnet-b0", decoder_channels=(32, 16, 8, 8, 8)),
        layer="encoder",
        path=(4,),
        shape=IMAGE,
        code=(2, 320, 2, 3),
    ),
    row(
        name="FlexibleUNet 2-D resnet18",
        build=monai("FlexibleUNet", 1, 2, "resnet18", decoder_channels=(32, 16, 8, 8, 8)),
        layer="encoder",
        path=(4,),
        shape=IMAGE,
        code=(2, 512, 2, 3),
    ),
    row(
        name="FlexibleUNet 3-D efficientnet-b0",
        build=monai("FlexibleUNet", 1, 2, "efficientnet-b0", decoder_channels=(32, 16, 8, 8, 8), spatial_dims=3),
        layer="encoder",
        path=(4,),
        shape=VOLUME,
        code=(1, 320, 1, 1, 2),
        modes=TRAIN,
    ),
    row(
        name="FlexibleUNet 3-D resnet10",
        build=monai("FlexibleUNet", 1, 2, "resnet10", decoder_channels=(32, 16, 8, 8, 8), spatial_dims=3),
        layer="encoder",
        path=(4,),
        shape=VOLUME,
        code=(1, 512, 1, 1, 2),
        modes=EVAL,
    ),
    # With deep supervision a head reads the code itself.
    row(
        name="MedNeXt 2-D, deep supervision",
        build=monai("MedNeXt", 2, 4, 1, 2, kernel_size=3, deep_supervision=True, use_residual_connection=True),
        layer="bottleneck",
        shape=IMAGE,
        code=(2, 64, 4, 6),
    ),
    row(
        name="MedNeXt 3-D",
        build=monai("MedNeXt", 3, 4, 1, 2, kernel_size=3, global_resp_norm=True),
        layer="bottleneck",
        shape=(2, 1, 16, 16, 32),
        code=(2, 64, 1, 1, 2),
    ),
    # Behind the decoder it pools pyramids, down to a grid as coarse as the code's.
    row(
        name="AHNet 2-D",
        build=monai("AHNet", (1, 1, 1, 1), 2, 1, 2, psp_block_num=2),
        layer="layer4",
        shape=IMAGE,
        code=(2, 2048, 2, 3),
    ),
    # Dropout and squeeze-excite are shared by all blocks, called last in the decoder; the last layer of the innermost
    # block is the one that is called once. Indices of the pooling go up with the codes.
    row(
        name="Quicknat 2-D",
        build=monai("Quicknat", 2, 1, 8, since="1.6", kernel_size=3, drop_out=0.2, se_block="CSE"),
        layer="model.1.submodule.1.submodule.1.submodule.1.submodule.layers2",
        shape=IMAGE,
        code=(2, 8, 4, 6),
    ),
    # All grids run side by side; the searched space returns a list, from fine to coarse.
    row(
        name="DiNTS 3-D",
        build=dints,
        layer="dints_space",
        path=(2,),
        shape=(2, 1, 16, 16, 32),
        code=(2, 32, 2, 2, 4),
    ),
    row(
        name="AutoEncoder 2-D",
        build=monai("AutoEncoder", 2, 1, 2, (4, 8, 16), (2, 2, 2), inter_channels=(16, 16)),
        layer="intermediate",
        shape=IMAGE,
        code=(2, 16, 8, 12),
    ),
    # The innermost block convolves at the coarsest grid and leaves it, so that its skip connection is finer.
    row(
        name="VoxelMorphUNet 2-D",
        build=monai("VoxelMorphUNet", 2, 2, 8, (4, 8, 8, 8, 16, 16), (8, 8)),
        layer="net.0.1.submodule.1.submodule.1.submodule.0",
        shape=(2, 2, 64, 96),
        code=(2, 16, 8, 12),
    ),
    # A network for registration; outputs at every depth, the coarsest read from the code, are averaged.
    row(
        name="RegUNet 2-D",
        build=monai("RegUNet", 2, 1, 4, 3, out_channels=2, extract_levels=(0, 1, 2, 3)),
        layer="bottom_block",
        shape=IMAGE,
        code=(2, 32, 8, 12),
    ),
    row(
        name="RegUNet 3-D",
        build=monai("RegUNet", 3, 1, 4, 3, out_channels=2, extract_levels=(0, 3), concat_skip=True, pooling=False),
        layer="bottom_block",
        shape=(2, 1, 16, 16, 32),
        code=(2, 32, 2, 2, 4),
    ),
]
