"""What varies the paper's method: its ablations, and what was tried beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from latentaug import (
    CooperativeModel,
    HardExamples,
    OneOf,
    RandomChannelMask,
    TargetedChannelMask,
    TargetedSpatialMask,
    cooperative_backward,
    paper_masks,
)
from study.methods.method import Method, off
from study.methods.transforms import bias_field

IMAGE_BRANCH = ("hard_image_segmentation", "hard_image_reconstruction", "shape_from_hard_image")
SHAPE_BRANCH = ("shape_from_hard_segmentation",)


def freeze_norms(model: CooperativeModel) -> None:
    """Let batch normalisation learn scale and shift from real images alone, the image decoder's excepted."""
    model.hard = replace(model.hard, frozen_norms=all_but_image_decoder(model))


def all_but_image_decoder(model: CooperativeModel) -> tuple[str, ...]:
    """Name the parts of the network and the shape prior, without what decodes images."""
    parts = [f"model.{name}" for name, part in model.model.named_children() if part is not model.reconstruction]
    return (*parts, "shape_prior")


ABLATIONS: Mapping[str, Method] = {
    "cooperative-dropout": Method(
        "of the three masks, dropout only", step=cooperative_backward, options={"augment": RandomChannelMask()}
    ),
    "cooperative-channel": Method(
        "of the three masks, targeted channels only",
        step=cooperative_backward,
        options={"augment": TargetedChannelMask()},
    ),
    "cooperative-spatial": Method(
        "of the three masks, targeted sites only", step=cooperative_backward, options={"augment": TargetedSpatialMask()}
    ),
    "cooperative-hard-masks": Method(
        "masks of 0 in place of soft ones",
        step=cooperative_backward,
        options={
            "augment": OneOf([RandomChannelMask(), TargetedChannelMask(annealing=0), TargetedSpatialMask(annealing=0)])
        },
    ),
    "cooperative-image-only": Method(
        "hard images, no hard segmentations", step=cooperative_backward, options=off(*SHAPE_BRANCH)
    ),
    "cooperative-shape-only": Method(
        "hard segmentations, no hard images", step=cooperative_backward, options=off(*IMAGE_BRANCH)
    ),
    "separate": Method(
        "hard examples, but no gradient from the shape prior to the network",
        step=cooperative_backward,
        options={"hard": HardExamples(separate=True)},
    ),
    "cooperative-harm": Method(
        "masks where they harm most: what raises the loss to first order is damped, not what the gradient is high on",
        step=cooperative_backward,
        options={"augment": paper_masks("harm")},
    ),
    "cooperative-norm-frozen": Method(
        "batch normalisation learns scale and shift from real images alone, as in the authors' released code",
        step=cooperative_backward,
        prepare=freeze_norms,
    ),
    "cooperative-ramp": Method(
        "the weight of hard examples rises over the first third of the training", step=cooperative_backward, ramp=1 / 3
    ),
    "cooperative-decoded": Method(
        "hard images are what masked codes decode to, without the residual, whatever the network",
        step=cooperative_backward,
        options={"hard": HardExamples(residual=0)},
    ),
    "cooperative-residual": Method(
        "hard images are the images, changed as masks change their reconstruction",
        step=cooperative_backward,
        options={"hard": HardExamples(residual=1)},
    ),
    "cooperative-residual-ramp": Method(
        "hard images are the images, changed as masks change their reconstruction, and the weight of hard examples "
        "rises over the first third of the training",
        step=cooperative_backward,
        options={"hard": HardExamples(residual=1)},
        ramp=1 / 3,
    ),
    "cooperative-details": Method(
        "hard images keep a fraction of the residual, sampled for each",
        step=cooperative_backward,
        options={"hard": HardExamples(residual=(0, 1))},
    ),
    "cooperative-hard-code": Method(
        "and the network segments from masked codes",
        step=cooperative_backward,
        options={"weights": {"hard_code_segmentation": 1.0}},
    ),
    "cooperative-bias-field": Method(
        "hard examples of slices under random bias fields",
        "after Chen et al., MICCAI 2020, arXiv:2006.13322, too",
        step=cooperative_backward,
        transform=bias_field,
    ),
    "cooperative-saliency-every-4": Method(
        "three batches of four are masked at random places",
        step=cooperative_backward,
        options={"hard": HardExamples(saliency_every=4)},
    ),
    "cooperative-hard-share-half": Method(
        "hard examples of half the batch", step=cooperative_backward, options={"hard": HardExamples(fraction=0.5)}
    ),
    "cooperative-hard-scale-half": Method(
        "hard examples at half the side", step=cooperative_backward, options={"hard": HardExamples(scale=0.5)}
    ),
}
