"""Layers that are suggested in networks of other libraries: those that a reader of the papers would choose."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from latentaug import (
    FTN,
    Compose,
    DropBlock,
    LatentTap,
    LatentTransform,
    ManifoldMixup,
    MixStyle,
    RandomChannelMask,
    augmented,
    suggest_layers,
)
from latentaug.discovery import suggest
from tests.integrations import smp_rows
from tests.integrations.rows import Row, unpaired
from tests.integrations.test_matrix import ROWS
from tests.support.random_streams import seed_all
from tests.support.trees import leaves

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),  # what the libraries themselves use
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]


class Patterned(LatentTransform):
    """Multiply by numbers that no normalisation takes back."""

    def make_params(self, code: Tensor, context: Any) -> dict[str, Any]:
        pattern = torch.rand(code.shape, generator=torch.Generator().manual_seed(0), dtype=code.dtype)
        return {"factor": 0.5 + pattern}

    def transform(self, code: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]
        return code * factor


class Everywhere(Patterned):
    """Belongs to all stages of the encoder, as DSU does."""

    place = "encoder"


class Late(Patterned):
    """Belongs to the last stages of the decoder, as MaxStyle does."""

    place = "late decoder"


class Kept(LatentTransform):
    """Change nothing, and keep the code."""

    code: Tensor

    def make_params(self, code: Tensor, context: Any) -> dict[str, Any]:
        self.code = code.clone()
        return {}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        return code


RESNET = ["encoder.layer1", "encoder.layer2"], ["encoder.layer3", "encoder.layer4"]
SWIN = "backbone.swin.encoder.layers"

# By hand, from the networks' own code: where the first two and the last two stages of the encoder end (of ResNets, what
# is called "layer"; of U-Nets, the levels that their skip connections come from), and the last two of the decoder.
BY_HAND: dict[str, tuple[list[str], list[str], list[str]]] = {
    "segmentation-models-pytorch Unet resnet18": (*RESNET, ["decoder.blocks.3", "decoder.blocks.4"]),
    "segmentation-models-pytorch Unet resnet34": (*RESNET, ["decoder.blocks.3", "decoder.blocks.4"]),
    "segmentation-models-pytorch Unet vgg11_bn": (
        ["encoder.features.2", "encoder.features.6"],
        ["encoder.features.20", "encoder.features.27"],
        ["decoder.blocks.3", "decoder.blocks.4"],
    ),
    "segmentation-models-pytorch Unet tu-convnext_atto": (
        ["encoder.model.stages_0", "encoder.model.stages_1"],
        ["encoder.model.stages_2", "encoder.model.stages_3"],
        ["decoder.blocks.3", "decoder.blocks.4"],
    ),
    "segmentation-models-pytorch DeepLabV3Plus resnet18": (*RESNET, ["decoder"]),
    "segmentation-models-pytorch Segformer mit_b0": (
        ["encoder.norm1", "encoder.norm2"],
        ["encoder.norm3", "encoder.norm4"],
        ["decoder"],
    ),
    "segmentation-models-pytorch DPT tu-vit_tiny_patch16_224": (
        ["encoder.model.blocks.2", "encoder.model.blocks.5"],
        ["encoder.model.blocks.8", "encoder.model.blocks.11"],
        ["decoder.fusion_blocks.2", "decoder.fusion_blocks.3"],
    ),
    "torchvision FCN resnet50, auxiliary head": (
        ["backbone.layer1", "backbone.layer2"],
        ["backbone.layer3", "backbone.layer4"],
        ["classifier.2"],
    ),
    "torchvision DeepLabV3 resnet50": (
        ["backbone.layer1", "backbone.layer2"],
        ["backbone.layer3", "backbone.layer4"],
        ["classifier.3"],
    ),
    "MONAI UNet 2-D, residual units": (
        ["model.0", "model.1.submodule.0"],
        ["model.1.submodule.1.submodule.1.submodule.0", "model.1.submodule.1.submodule.1.submodule.1"],
        ["model.1.submodule.1.submodule.2", "model.1.submodule.2"],
    ),
    "MONAI DynUNet 2-D": (
        ["input_block", "downsamples.0"],
        ["downsamples.1", "bottleneck"],
        ["upsamples.1", "upsamples.2"],
    ),
    "MONAI SwinUNETR 2-D": (
        ["swinViT.layers1.0", "swinViT.layers2.0"],
        ["swinViT.layers3.0", "encoder10"],
        ["decoder2", "decoder1"],
    ),
    "transformers SegFormer": (
        ["segformer.stages.0", "segformer.stages.1"],
        ["segformer.stages.2", "segformer.stages.3"],
        ["decode_head.activation"],
    ),
    "transformers UPerNet swin, auxiliary head": (
        [f"{SWIN}.0.blocks.0[0]", f"{SWIN}.1.blocks.0[0]"],
        [f"{SWIN}.2.blocks.0[0]", "backbone.hidden_states_norms.stage4"],
        ["decode_head.fpn_bottleneck"],
    ),
    **{
        f"nnU-Net {name} {dimensions}": (
            ["encoder.stages.0", "encoder.stages.1"],
            ["encoder.stages.2", "encoder.stages.3"],
            ["decoder.stages.1", "decoder.stages.2"],
        )
        for name in ("PlainConvUNet", "ResidualEncoderUNet")
        for dimensions in ("2-D", "3-D anisotropic")
    },
    "paper FTN": (
        ["encoder.blocks.0", "encoder.blocks.1"],
        ["encoder.blocks.2", "decoupler"],  # the decoupler makes the bottleneck, on the same grid
        ["segmentation_decoder.blocks.2", "segmentation_decoder.blocks.3"],
    ),
}

OWN = [
    smp_rows.row("Unet resnet34", (512, 2, 3)),
    Row(
        library="paper",
        name="FTN",
        build=lambda: FTN(width=4),
        layer="decoupler",
        shape=(2, 1, 64, 96),
        code=(2, 32, 4, 6),
    ),
]
BY_NAME = {str(row): row for row in (*ROWS, *OWN)}

# Passes to see changes in: this network leaves blocks out by chance.
PASSES = {"by hand stochastic depth, dropout, dropped blocks": 4}

# Neither of two streams holds all that the bottleneck is made of; and a searched network has no stages.
NO_EARLY = {
    "by hand siamese, as one batch",
    "by hand two streams, fused by a module",
    "by hand sums in place between modules",
    "MONAI DiNTS 3-D",
}

# What follows the bottleneck is the logits already, a sum over several grids, a transformer of queries, or made by
# modules that serve the encoder too.
NO_DECODER = {
    "torchvision LR-ASPP mobilenet_v3_large",
    "MONAI RegUNet 2-D",
    "MONAI RegUNet 3-D",
    "transformers MaskFormer swin",
    "transformers Mask2Former swin",
    "transformers OneFormer swin",
    "transformers EoMT",
    "transformers EoMT DINOv3",
    "by hand U-Net, one block down, one up",
    "by hand U-Net, one block for all levels",
    "by hand Segmenter, forward_features",
    "by hand MLP-Mixer",
    "by hand F.dropout in the encoder",
    "by hand walked by index, strided classifier",
    "by hand classes from the encoder",
}


QUICK = {
    "segmentation-models-pytorch Unet resnet18",
    "MONAI DynUNet 2-D",
    "nnU-Net PlainConvUNet 2-D",
    "paper FTN",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in BY_HAND]
)
def test_layers_are_those_that_are_expected_by_hand(name: str) -> None:
    row = BY_NAME[name]
    model, images = row.model(True), row.images()
    early, deep, late = BY_HAND[name]
    transforms: list[tuple[LatentTransform, list[str]]] = [
        (MixStyle(), early),
        (ManifoldMixup(), early),
        (DropBlock(), deep),
        (Late(), late),
        (RandomChannelMask(), [row.spot]),
    ]
    for transform, expected in transforms:
        assert list(map(str, suggest_layers(model, images, transform).layers)) == expected
    everywhere = list(map(str, suggest_layers(model, images, Everywhere()).layers))
    assert [layer for layer in everywhere if layer in (*early, *deep)] == list(dict.fromkeys([*early, *deep]))
    layers = suggest_layers(model, images, MixStyle()).layers
    with LatentTap(model.eval(), list(layers)) as tap, torch.no_grad():
        model(images)
        assert [tuple(code.shape) for code in tap.codes] == [layer.shape for layer in layers]


@pytest.fixture
def looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the transforms that a test asks for share one look at its only model; it is the longest part of the test."""
    for name in ("looked", "stages_of"):
        seen = [getattr(suggest, name)]
        monkeypatch.setattr(suggest, name, functools.partial(_once, seen))


def _once(seen: list[Any], *args: Any) -> Any:
    """Call the function that is there first, and then return what it did."""
    if len(seen) == 1:
        seen.append(seen[0](*args))
    return seen[1]


@pytest.mark.slow
@pytest.mark.parametrize("row", unpaired(ROWS), ids=str, scope="session")  # as in the matrix
@pytest.mark.usefixtures("looked_at_once")
def test_layers_can_be_changed_and_deeper_codes_see_it(row: Row) -> None:
    model, images = row.model(True), row.images()
    (bottleneck,) = suggest_layers(model, images, RandomChannelMask(), logits=row.logits).layers
    assert (bottleneck.name, bottleneck.index) == (row.layer, row.path)
    if str(row) in NO_EARLY:
        with pytest.raises(ValueError, match="suggest_layers found no layer for MixStyle"):
            suggest_layers(model, images, MixStyle(), logits=row.logits)
        return

    def passed(layer: Any = None) -> tuple[Tensor, list[Tensor]]:
        """Return the bottleneck's code, and the results, of passes in which a layer is changed."""
        codes, results = list[Tensor](), list[Tensor]()
        for seed in range(PASSES.get(str(row), 1)):
            kept = Kept()
            changed: dict[Any, LatentTransform] = {bottleneck: kept}
            if layer is not None and str(layer) == str(bottleneck):
                changed = {bottleneck: Compose([kept, Patterned()])}
            elif layer is not None:
                changed[layer] = Patterned()
            seed_all(seed)
            with torch.no_grad(), augmented(model, changed):
                results.extend(leaves(model(images)))
            codes.append(kept.code)
        return torch.stack(codes), results

    @functools.cache
    def reached(layer: Any) -> tuple[bool, bool]:
        """Tell whether a change of a layer shows in the bottleneck's code, and in the results."""
        code, results = passed(layer)
        return not torch.allclose(code, plain[0]), any(
            not torch.allclose(a, b) for a, b in zip(results, plain[1], strict=True)
        )

    plain = passed()
    early = suggest_layers(model, images, MixStyle(), logits=row.logits).layers
    assert all(reached(layer)[0] for layer in early)
    for transform in (Everywhere(), DropBlock(), Late()):
        if transform.place == "late decoder" and str(row) in NO_DECODER:
            with pytest.raises(ValueError, match="suggest_layers found no layer for Late"):
                suggest_layers(model, images, transform, logits=row.logits)
            continue
        layers = suggest_layers(model, images, transform, logits=row.logits).layers
        assert all(reached(layer)[1] for layer in layers)
