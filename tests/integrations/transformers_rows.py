"""Rows of Hugging Face transformers: small models from configurations, with random weights.

Their outputs and those of their parts are dictionaries, where a tensor may stand under several names: a model's last
hidden state is also the last of its hidden states. The first name counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.layout import Layout
from tests.integrations.rows import Row


def transformers(
    name: str, task: str = "SemanticSegmentation", /, *, since: str = "5.13", **options: Any
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("transformers", minversion=since)
        if not library.is_torch_available():
            pytest.skip(f"transformers {library.__version__} needs a later torch than {torch.__version__}")
        # A copy, as a configuration may take things out of the dictionaries that it is given.
        configuration = getattr(library, f"{name}Config")(num_labels=2, **copy.deepcopy(options))
        return getattr(library, f"{name}For{task}")(configuration)

    return build


class ToldTheTask(nn.Module):
    """OneFormer does one of several tasks, and is told which by tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images, task_inputs=images.new_ones(len(images), self.model.config.task_seq_len))


def oneformer(**options: Any) -> Callable[[], nn.Module]:
    build = transformers("OneFormer", "UniversalSegmentation", **options)
    return lambda: ToldTheTask(build())


def from_masks(output: Any) -> Tensor:
    """Let each query's mask vote for the query's classes, the last of which is none; the logarithm makes it logits."""
    classes, masks = output.class_queries_logits.softmax(-1)[..., :-1], output.masks_queries_logits.sigmoid()
    return torch.einsum("bqk,bqhw->bkhw", classes, masks).clamp_min(1e-6).log()


row = partial(Row, library="transformers")
WIDE, SQUARE = (2, 3, 64, 96), (2, 3, 64, 64)

STAGES = {"depths": [1, 1, 1, 1], "out_features": ["stage1", "stage2", "stage3", "stage4"]}
WIDTHS = {"hidden_sizes": [8, 16, 24, 32]}
SWIN = {"model_type": "swin", "image_size": 64, "embed_dim": 12, "num_heads": [1, 2, 2, 2], "window_size": 2, **STAGES}
RESNET = {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic", **WIDTHS, **STAGES}
BIT = {
    "model_type": "bit",
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 32],
    "depths": [1, 1, 1],
    "num_groups": 4,
    "out_features": ["stage1", "stage2", "stage3"],
}
VIT = {"image_size": 64, "patch_size": 16, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
SEGFORMER = {"depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16, **WIDTHS}
DPT = {**VIT, "intermediate_size": 48, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 8}
BEIT = {**VIT, "intermediate_size": 48, "out_indices": [1, 2, 3, 4], "auxiliary_channels": 8}
QUERIES = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "dim_feedforward": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
}
DETR = {
    "model_type": "detr",
    "d_model": 16,
    "num_queries": 5,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
# Nine queries could be a grid of 3x3 sites, coarser than the code's 6x6.
EOMT = {**VIT, "image_size": 96, "num_blocks": 2, "num_queries": 9, "attn_implementation": "eager"}

ROWS = [
    # Hierarchical encoders: the code is the last of the feature maps, at stride 32 where nothing is dilated.
    row(
        name="SegFormer",
        build=transformers("Segformer", **SEGFORMER),
        layer="segformer",
        path=("last_hidden_state",),
        shape=WIDE,
        code=(2, 32, 2, 3),
        quick=True,
    ),
    row(
        name="SegFormer, returns hidden states",
        build=transformers("Segformer", **SEGFORMER, output_hidden_states=True),
        layer="segformer",
        path=("last_hidden_state",),
        shape=WIDE,
        code=(2, 32, 2, 3),
    ),
    row(
        name="UPerNet swin, auxiliary head",
        build=transformers(
            "UperNet", backbone_config=SWIN, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=48
        ),
        layer="backbone",
        path=("feature_maps", 3),
        shape=WIDE,
        code=(2, 96, 2, 3),
    ),
    row(
        name="UPerNet convnext",
        build=transformers(
            "UperNet",
            backbone_config={"model_type": "convnext", **WIDTHS, **STAGES},
            hidden_size=16,
            use_auxiliary_head=False,
        ),
        layer="backbone",
        path=("feature_maps", 3),
        shape=WIDE,
        code=(2, 32, 2, 3),
    ),
    row(
        name="UPerNet resnet, returns a tuple",
        build=transformers(
            "UperNet", backbone_config=RESNET, hidden_size=16, use_auxiliary_head=False, return_dict=False
        ),
        layer="backbone",
        path=("feature_maps", 3),
        shape=WIDE,
        code=(2, 32, 2, 3),
    ),
    row(
        name="MobileViT",
        build=transformers(
            "MobileViT",
            hidden_sizes=[8, 12, 16],
            neck_hidden_sizes=[4, 8, 8, 12, 16, 20, 24],
            num_attention_heads=2,
            aspp_out_channels=8,
            output_stride=16,
            initializer_range=1.0,  # as it is, the scales of batch normalisation start near zero
        ),
        layer="mobilevit",
        path=("last_hidden_state",),
        shape=WIDE,
        code=(2, 20, 4, 6),
    ),
    row(
        name="MobileViTV2",
        build=transformers(
            "MobileViTV2",
            width_multiplier=0.125,
            n_attn_blocks=[1, 1, 1],
            aspp_out_channels=8,
            initializer_range=1.0,  # as above
        ),
        layer="mobilevitv2",
        path=("last_hidden_state",),
        shape=WIDE,
        code=(2, 64, 2, 3),
    ),
    # The last hidden state is for classifiers; the head reads the last block, the sixteenth.
    row(
        name="MobileNetV2",
        build=transformers("MobileNetV2", depth_multiplier=0.25, output_stride=16),
        layer="mobilenet_v2",
        path=("hidden_states", 15),
        shape=WIDE,
        code=(2, 80, 4, 6),
    ),
    # Transformers that stay on one grid: the code is its tokens, before the decoder spreads them over several grids.
    row(
        name="DPT",
        build=transformers("DPT", **DPT, neck_hidden_sizes=[8, 8, 16, 16]),
        layer="dpt",
        path=("hidden_states", 4),
        shape=SQUARE,
        code=(2, 17, 24),
        layout=Layout(-1, 1),
        timed=SQUARE,
    ),
    row(
        name="DPT hybrid",
        build=transformers(
            "DPT",
            **DPT,
            is_hybrid=True,
            backbone_config=BIT,
            backbone_featmap_shape=[1, 32, 4, 4],
            neck_hidden_sizes=[16, 16, 16, 16],
        ),
        layer="dpt",
        path=("hidden_states", 4),
        shape=SQUARE,
        code=(2, 17, 24),
        layout=Layout(-1, 1),
        timed=SQUARE,
    ),
    row(
        name="TIPSv2 DPT",
        build=transformers(
            "Tipsv2Dpt",
            since="5.16",
            backbone_config={
                **VIT,
                "model_type": "tipsv2_vision_model",
                "out_indices": [1, 2, 3, 4],
                "reshape_hidden_states": False,
            },
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=8,
        ),
        layer="backbone",
        path=("feature_maps", 3),
        shape=SQUARE,  # at another size, it interpolates the positions' embeddings in float32
        code=(2, 18, 24),
        layout=Layout(-1, 2),
    ),
    row(
        name="Sapiens2",
        build=transformers(
            "Sapiens2",
            **{**VIT, "hidden_size": 32},
            intermediate_size=48,
            head_config={"upsample_out_channels": [16, 16, 8, 8], "conv_out_channels": [8]},
        ),
        layer="model",
        path=("last_hidden_state",),
        shape=SQUARE,
        code=(2, 25, 32),
        layout=Layout(-1, 9),
    ),
    # Here the deepest tokens are pooled once more before the decoder; BEiT does it in a module, which returns a tuple.
    row(
        name="BEiT",
        build=transformers("Beit", **BEIT, use_relative_position_bias=True),
        layer="fpn",
        path=(3,),
        shape=SQUARE,
        code=(2, 24, 2, 2),
        timed=SQUARE,
    ),
    row(
        name="Data2VecVision",
        build=transformers("Data2VecVision", **BEIT, use_absolute_position_embeddings=True),
        layer="fpn4",
        shape=SQUARE,
        code=(2, 24, 2, 2),
        timed=SQUARE,
    ),
    # Classifiers of masks. The modules around the encoder return its code too, but only once their decoder has read it.
    row(
        name="MaskFormer swin",
        build=transformers(
            "MaskFormer",
            "InstanceSegmentation",
            backbone_config=SWIN,
            decoder_config=DETR,
            fpn_feature_size=32,
            mask_feature_size=32,
        ),
        layer="model.pixel_level_module.encoder",
        path=("feature_maps", 3),
        shape=WIDE,
        code=(2, 96, 2, 3),
        logits=from_masks,
    ),
    row(
        name="Mask2Former swin",
        build=transformers(
            "Mask2Former",
            "UniversalSegmentation",
            backbone_config=SWIN,
            **QUERIES,
            feature_size=32,
            mask_feature_size=32,
            num_queries=2,  # could be a grid of 1x2 sites, coarser than the code's 2x3
        ),
        layer="model.pixel_level_module.encoder",
        path=("feature_maps", 3),
        shape=WIDE,
        code=(2, 96, 2, 3),
        logits=from_masks,
    ),
    row(
        name="OneFormer swin",
        build=oneformer(
            backbone_config=SWIN,
            **QUERIES,
            conv_dim=32,
            mask_dim=32,
            query_dec_layers=1,
            num_queries=5,
            task_seq_len=4,
        ),
        layer="model.model.pixel_level_module.encoder",
        path=("feature_maps", 3),
        shape=WIDE,
        code=(2, 96, 2, 3),
        logits=from_masks,
    ),
    # Queries join the tokens after the second of four blocks; up to there it is an encoder.
    row(
        name="EoMT",
        build=transformers("Eomt", "UniversalSegmentation", **EOMT),
        layer="layers.1",
        shape=(2, 3, 96, 96),
        code=(2, 41, 24),
        layout=Layout(-1, 5),
        logits=from_masks,
        timed=(2, 3, 96, 96),
    ),
    row(
        name="EoMT DINOv3",
        build=transformers("EomtDinov3", "UniversalSegmentation", **EOMT, intermediate_size=48),
        layer="layers.1",
        shape=(2, 3, 96, 96),
        code=(2, 41, 24),
        layout=Layout(-1, 5),
        logits=from_masks,
        timed=(2, 3, 96, 96),
    ),
]
