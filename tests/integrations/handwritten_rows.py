"""Rows of networks written by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn

from latentaug.layout import CHANNELS_LAST, TOKENS, Layout
from tests.integrations.rows import Row
from tests.models.handwritten import (
    attention,
    blocks,
    codes,
    contexts,
    dimensions,
    outputs,
    recurrent,
    resampling,
    strange,
    streams,
    tokens,
    unets,
    wrappers,
)
from tests.models.hostile.table import CASES

IMAGES = (2, 3, 32, 48)


def by_hand(name: str, build: Callable[[], nn.Module], layer: str, code: tuple[int, ...], **options: Any) -> Row:
    return Row(library="by hand", name=name, build=build, layer=layer, code=code, **{"shape": IMAGES} | options)


def hostile(name: str, case: str, code: tuple[int, ...], **options: Any) -> Row:
    """Take a model, and where its code is, from the table of those that break careless replays."""
    known = CASES[case]
    return by_hand(
        name, known.build, code=code, **{"layer": known.layer, "path": known.path, "shape": known.shape} | options
    )


def timm_features(name: str, widths: tuple[int, ...], channels_last: bool = False, **options: Any) -> nn.Module:
    encoder = pytest.importorskip("timm").create_model(name, features_only=True, **options)
    return wrappers.OnFeatures(encoder, widths, channels_last)


UNETS = [
    by_hand("U-Net, functional skips", unets.FunctionalUNet, "bottom", (2, 32, 8, 12)),
    by_hand("U-Net of nn.Sequential", unets.SequentialUNet, "encoder.2", (2, 32, 8, 12)),
    by_hand(
        "U-Net of ModuleLists, popped skips", unets.PoppingUNet, "bottleneck", (2, 32, 4, 6), classes=1, quick=True
    ),
    by_hand("U-Net, one block down, one up", partial(unets.SharedUNet, False), "block", (2, 8, 4, 6)),
    # The block comes last in the decoder, so that of the modules on the coarsest grid only the pooling can be named.
    by_hand("U-Net, one block for all levels", partial(unets.SharedUNet, True), "down", (2, 8, 4, 6)),
    by_hand("FPN, in place", blocks.InPlacePyramid, "layer3", (2, 32, 8, 12), classes=4),
    by_hand("Attention U-Net", attention.AttentionUNet, "center", (2, 32, 8, 12)),
    by_hand("U-Net, odd sizes", unets.PaddingUNet, "down3", (2, 32, 4, 6), shape=(2, 3, 37, 51)),
    by_hand("U-Net, unpadded", unets.UnpaddedUNet, "bottom", (2, 32, 8, 12), shape=(2, 3, 60, 76)),
    by_hand("ResUNet", blocks.ResUNet, "bridge", (2, 64, 4, 6)),
    # The activation behind the innermost convolution changes what that returned, and so is the one to be tapped.
    by_hand("U-Net, recursive", unets.RecursiveUNet, "model.1.model.2.model.2.model.2", (2, 32, 4, 6)),
    by_hand("SegNet, unpooling", unets.SegNet, "pool", (2, 32, 4, 6), path=(0,)),
    by_hand("FCN-8s", unets.FullyConvolutional, "fully_connected", (2, 64, 4, 6), classes=4),
    by_hand("UNet++, deep supervision", unets.UNetPlusPlus, "conv3_0", (2, 32, 4, 6)),
    by_hand("U2-Net", unets.U2Net, "stage4", (2, 16, 4, 6)),
    by_hand("MultiResUNet", blocks.MultiResUNet, "multires3", (2, 32, 8, 12)),
    by_hand("Tiramisu", blocks.Tiramisu, "bottleneck", (2, 24, 8, 12)),
    by_hand("U-Net, squeeze-and-excitation", attention.SqueezeExciteUNet, "se3", (2, 32, 8, 12)),
]
CONTEXTS = [
    by_hand("DeepLab", contexts.DeepLab, "backbone", (2, 48, 4, 6), classes=4),
    by_hand("U-Net, ASPP as bridge", contexts.BridgeUNet, "bridge", (2, 32, 8, 12)),
    by_hand("PSPNet, functional pooling", contexts.PooledPyramid, "encoder", (2, 32, 8, 12), shape=(2, 3, 64, 96)),
    by_hand("HRNet", contexts.HighResolutionNet, "stage2", (2, 32, 4, 6), path=(2,)),
    by_hand("features in a dict", contexts.NamedFeatures, "backbone", (2, 32, 4, 6), path=("res3",)),
    by_hand(
        "SegFormer head, logits at 1/4",
        contexts.QuarterResolution,
        "encoder",
        (2, 32, 4, 6),
        path=(2,),
        classes=4,
        shape=(2, 3, 64, 96),
    ),
    by_hand("BiSeNet", contexts.Bilateral, "context.resnet", (2, 32, 4, 6), path=(2,)),
    by_hand("siamese", streams.ChangeDetector, "encoder", (2, 32, 4, 6), path=(2,), shape=(2, 6, 32, 48)),
    by_hand("siamese, as one batch", streams.BatchedChangeDetector, "fuse.2", (2, 32, 4, 6), shape=(2, 6, 32, 48)),
    by_hand(
        "two streams, fused by a module",
        partial(streams.TwoStreams, True),
        "fusion",
        (2, 32, 4, 6),
        shape=(2, 4, 32, 48),
    ),
    # Neither stream alone is the code; the later one is as good as the other.
    by_hand(
        "two streams, fused by a function",
        partial(streams.TwoStreams, False),
        "depth",
        (2, 32, 4, 6),
        path=(2,),
        shape=(2, 4, 32, 48),
    ),
    by_hand(
        "timm ResNet features",
        partial(timm_features, "resnet10t", (16, 8, 16, 24, 32), stem_width=8, channels=(8, 16, 24, 32)),
        "encoder",
        (2, 32, 1, 2),
        path=(4,),
        shape=(2, 3, 32, 64),
        classes=3,
    ),
    by_hand(
        "timm Swin features, channels last",
        partial(
            timm_features,
            "swin_tiny_patch4_window7_224",
            (16, 32, 64),
            True,
            img_size=(64, 96),
            embed_dim=16,
            depths=(1, 1, 1),
            num_heads=(1, 2, 4),
            window_size=4,
        ),
        "encoder",
        (2, 4, 6, 64),
        path=(2,),
        shape=(2, 3, 64, 96),
        timed=(2, 3, 64, 96),
        layout=CHANNELS_LAST,
        classes=3,
    ),
]
RECURRENT_AND_OTHER_DIMENSIONS = [
    by_hand("R2U-Net", recurrent.RecurrentUNet, "rrcnn3", (2, 32, 8, 12)),
    by_hand("ConvLSTM at the bottleneck", recurrent.RecurrentBottleneck, "cell", (2, 32, 4, 6), path=(0,)),
    by_hand("V-Net 3-D", dimensions.VNet, "down_tr2", (2, 16, 2, 4, 4), shape=(2, 1, 8, 16, 16)),
    by_hand("U-Net 3-D, anisotropic", dimensions.AnisotropicUNet, "bottom", (2, 16, 4, 4, 4), shape=(2, 1, 8, 16, 16)),
    by_hand("U-Net 1-D", dimensions.SignalUNet, "bottom", (2, 32, 8), shape=(2, 1, 128), timed=(8, 1, 8192), classes=3),
]
TOKENS_AND_CHANNELS_LAST = [
    by_hand("TransUNet", attention.HybridTransformer, "transformer", (2, 24, 32), layout=TOKENS, timed=IMAGES),
    by_hand(
        "Segmenter, forward_features",
        attention.Segmenter,
        "vit.norm",
        (2, 25, 32),
        layout=Layout(-1, 1),
        classes=4,
        timed=IMAGES,
    ),
    by_hand(
        "Swin, channels last",
        attention.SwinPyramid,
        "backbone",
        (2, 4, 6, 48),
        path=(2,),
        layout=CHANNELS_LAST,
        shape=(2, 3, 64, 96),
    ),
    by_hand("MLP-Mixer", tokens.Mixer, "mixer", (2, 24, 32), layout=TOKENS, timed=IMAGES),
    by_hand(
        "Swin-Unet, tokens throughout", tokens.TokenUNet, "bottleneck", (2, 24, 32), layout=TOKENS, timed=(2, 3, 64, 96)
    ),
    by_hand("UNeXt", tokens.TokenizedUNet, "norm2", (2, 24, 32), layout=TOKENS),
    by_hand("ConvMixer, logits at 1/2", tokens.ConvMixer, "blocks", (2, 32, 4, 6)),
]
OTHER_CODES_AND_OUTPUTS = [
    by_hand("U-Net with a classifier, NamedTuple", outputs.WithClassifier, "encoder", (2, 32, 4, 6), path=(2,)),
    by_hand("U-Net, deep supervision", outputs.DeeplySupervised, "bottom", (2, 32, 8, 12)),
    by_hand("two decoders", outputs.TwoDecoders, "encoder", (2, 32, 4, 6), path=(2,)),
    by_hand("variational U-Net, dataclass", codes.VariationalUNet, "bottleneck", (2, 32, 4, 6), path=(0,)),
    by_hand("vector-quantised U-Net, tuple with a loss", codes.QuantisedUNet, "quantise", (2, 32, 4, 6), path=(0,)),
    by_hand("stochastic depth, dropout, dropped blocks", codes.StochasticUNet, "stage3", (2, 32, 4, 6)),
    by_hand("FiLM by a context network", streams.Modulated, "encoder", (2, 32, 4, 6), path=(2,)),
    by_hand("spatial transformer before the U-Net", resampling.Localised, "unet.bottom", (2, 32, 8, 12), timed=IMAGES),
    by_hand("aligned by grid_sample", resampling.AlignedUNet, "layer3", (2, 32, 4, 6)),
    by_hand("U-Net, pixel shuffle", resampling.ShuffledUNet, "bottom", (2, 32, 4, 6)),
    by_hand("U-Net, wavelets", resampling.WaveletUNet, "bottom", (2, 64, 8, 12)),
    by_hand("wrapped", lambda: wrappers.Wrapper(unets.FunctionalUNet()), "net.bottom", (2, 32, 8, 12)),
    by_hand(
        "wrapped twice", lambda: wrappers.Wrapper(wrappers.Wrapper(blocks.ResUNet())), "net.net.bridge", (2, 64, 4, 6)
    ),
    by_hand(
        "resized inside to one size",
        lambda: wrappers.Resizing(blocks.ResUNet(), (32, 32)),
        "net.bridge",
        (2, 64, 4, 4),
        shape=(2, 3, 48, 72),
    ),
    by_hand(
        "padded inside",
        lambda: wrappers.Padding(blocks.ResUNet(), 32),
        "net.bridge",
        (2, 64, 8, 8),
        shape=(2, 3, 40, 56),
    ),
    by_hand("autocast inside", lambda: wrappers.MixedPrecision(unets.FunctionalUNet()), "net.bottom", (2, 32, 8, 12)),
]
STRANGE = [
    # The activation is what the hooks see; the stage and the encoder return the same tensor too late.
    by_hand("hooks set when built, result dropped", strange.HooksWhenBuilt, "encoder.stages.2.1.2", (2, 32, 4, 6)),
    by_hand("hooks set in forward, result dropped", strange.HooksInForward, "encoder.2.1.2", (2, 32, 4, 6)),
    by_hand(
        "blocks of a transformer hooked",
        strange.HookedTransformer,
        "vit.blocks.1",
        (2, 25, 24),
        layout=Layout(-1, 1),
        timed=IMAGES,
    ),
    # Of what the decoder reads, no module returns all: the last tensor that all of it comes of is the code.
    by_hand("sum of branches", strange.SumOfBranches, "down3", (2, 32, 4, 6)),
    by_hand("sum along the way", strange.SumAlongTheWay, "down3", (2, 32, 4, 6)),
    by_hand("recurrent, state computed by functions", strange.FunctionalState, "down3", (2, 32, 4, 6)),
    by_hand("pooled with indices, around skips", strange.PooledWithIndices, "pool", (2, 32, 4, 6), path=(0,)),
    by_hand("centre thrown away", strange.CentreThrownAway, "pool", (2, 32, 4, 6)),
    # Classes are no code, though on the coarsest grid.
    by_hand("walked by index, strided classifier", strange.WalkedByIndex, "features.8", (2, 32, 4, 6), classes=4),
    by_hand("classes from the encoder", strange.ClassesFromTheEncoder, "encoder.down3", (2, 32, 4, 6), classes=4),
    by_hand("down to one site along an axis", strange.DownToOneSite, "downs.4", (2, 32, 1, 2), shape=(2, 3, 32, 64)),
    by_hand("film of one frame", strange.FilmOfOneFrame, "middle", (2, 32, 1, 8, 12)),
]
HOSTILE = [
    hostile("activation as a statement", "StatementActivation", (2, 6, 8, 8)),
    # It changes what the layer before it returned, and so is the one to be tapped.
    hostile("activation in place behind the code", "ActivationBehindTheTap", (2, 6, 8, 8), layer="relu"),
    hostile("identity that aliases", "AliasingIdentity", (2, 6, 8, 8)),
    hostile("sums in place between modules", "InPlaceBetweenModules", (2, 6, 8, 8)),
    hostile("activation shared by both halves", "SharedActivation", (2, 6, 8, 8), layer="encoder", path=(1,)),
    hostile("input normalised in place", "InputChangedInPlace", (2, 6, 8, 8)),
    hostile("functional dropout before the code", "FunctionalDropout", (2, 6, 8, 8)),
    hostile("F.dropout in the encoder", "DropoutInEncoder", (2, 6, 4, 4)),
    hostile("encoder.forward() called, list emptied", "DirectForward", (2, 8, 4, 4)),
    hostile("skips collected by hooks", "HookedSkips", (2, 8, 4, 4)),
    hostile("skips left on the encoder", "SkipsOnSelf", (2, 8, 4, 4)),
    hostile("spectral norm", "OldSpectralNorm", (2, 6, 8, 8)),
    hostile("spectral norm, parametrised", "NewSpectralNorm", (2, 6, 8, 8)),
    hostile("checkpointed decoder", "CheckpointedDecoder", (2, 6, 8, 8)),
    hostile("encoder under no_grad", "EncoderWithoutGraph", (2, 6, 8, 8)),
]
ROWS: list[Row] = [
    *UNETS,
    *CONTEXTS,
    *RECURRENT_AND_OTHER_DIMENSIONS,
    *TOKENS_AND_CHANNELS_LAST,
    *OTHER_CODES_AND_OUTPUTS,
    *STRANGE,
    *HOSTILE,
]
