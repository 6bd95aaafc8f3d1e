"""The methods of the table: how each trains, everything else being equal."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cardiac.methods.transforms import bias_field, gaussian_noise, random_convolution
from latentaug import (
    CooperativeModel,
    CooperativeOutput,
    OneOf,
    RandomChannelMask,
    TargetedChannelMask,
    TargetedSpatialMask,
    cooperative_backward,
    paper_masks,
    standard_backward,
)
from latentaug.training.trainer import TrainingStep

Transform = Callable[[Tensor, torch.Generator], Tensor]

IMAGE_BRANCH = ("hard_image_segmentation", "hard_image_reconstruction", "shape_from_hard_image")
SHAPE_BRANCH = ("shape_from_hard_segmentation",)
MIXING = 0.2
"""Both parameters of the beta distribution that mixup draws from."""


@dataclass(frozen=True)
class Method:
    """One method, trained from the same weights, on the same batches, for as many iterations as any other.

    Args:
        title: What it does, for the reader of the table.
        reference: Whom it is from; empty for Chen et al., MICCAI 2021, and for what varies that.
        step: Fills the gradients from a batch.
        options: Arguments of `CooperativeModel` that are not its defaults.
        transform: Changes the images of a batch before the step.
        ramp: Share of the training over which the weights of the losses on hard examples rise from 0.
        refines: Whether the shape prior is trained.
        norm_frozen: Whether batch normalisation learns scale and shift from real images alone, the image decoder's
            excepted, as in the authors' released code.
    """

    title: str
    reference: str = ""
    step: TrainingStep = standard_backward
    options: Mapping[str, Any] = field(default_factory=dict)
    transform: Transform | None = None
    ramp: float = 0.0
    refines: bool = True
    norm_frozen: bool = False

    def backward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        scaler: torch.amp.GradScaler | None = None,
        generator: torch.Generator | None = None,
    ) -> CooperativeOutput:
        """Fill the gradients from a batch, as `cooperative_backward` does."""
        if self.transform is not None:
            images = self.transform(images, generator or torch.default_generator)
        return self.step(model, images, labels, scaler=scaler, generator=generator)

    def describe(self, name: str) -> str:
        """Say in a line what the method is that the table calls `name`."""
        return f"{name}: {self.title}{f' ({self.reference})' if self.reference else ''}."


def mixup_backward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    scaler: torch.amp.GradScaler | None = None,
    generator: torch.Generator | None = None,
) -> CooperativeOutput:
    """Train on mixtures of two slices each, λ of one and 1 - λ of another.

    The segmentation losses are mixed alike, λ · CE(y) + (1 - λ) · CE(y'), before and after the shape prior; the mixture
    is reconstructed; and the shape prior reads the labels of single slices, which can't be mixed.

    Draws:
        λ ~ Beta(0.2, 0.2) once per batch, and which slices are paired.

    References:
        Zhang et al., ICLR 2018, arXiv:1710.09412.
    """
    assert isinstance(model, CooperativeModel)
    generator = generator or torch.default_generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    order = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
    share = random.Random(int(seed)).betavariate(MIXING, MIXING)
    mixed = share * images + (1 - share) * images[order]
    output = model(mixed, labels, generator=generator, stage="plain")
    losses = dict(output.losses)
    for name, logits in (("segmentation", output.logits), ("shape_from_logits", output.refined)):
        losses[name] = share * losses[name] + (1 - share) * model.weights[name] * model.loss(logits, labels[order])
    loss = torch.stack([*losses.values()]).sum()
    with torch.autocast(images.device.type, enabled=False):
        (loss if scaler is None else scaler.scale(loss)).backward()
    return output._replace(loss=loss, losses=losses)


def _off(*names: str) -> dict[str, Any]:
    return {"weights": dict.fromkeys(names, 0.0)}


METHODS: Mapping[str, Method] = {
    "standard": Method("no hard examples"),
    "standard-without-stn": Method(
        "the network alone, without a shape prior",
        options=_off("shape_from_logits", "shape_from_labels"),
        refines=False,
    ),
    "mixup": Method("standard, on mixtures of slices", "Zhang et al., ICLR 2018, arXiv:1710.09412", mixup_backward),
    "randconv": Method(
        "standard, through random convolutions",
        "Xu et al., ICLR 2021, arXiv:2007.13003",
        transform=random_convolution,
    ),
    "bias-field": Method(
        "standard, under random bias fields", "after Chen et al., MICCAI 2020, arXiv:2006.13322", transform=bias_field
    ),
    "noise": Method("standard, under Gaussian noise of up to 0.2", transform=gaussian_noise),
    "random-masks": Method(
        "hard examples of randomly dropped channels, as large a share of them as targeted masks damp",
        step=cooperative_backward,
        options={"masker": RandomChannelMask((0, 0.5))},
    ),
    "cooperative": Method(
        "the paper's method; of a network that isn't the paper's, hard images keep a drawn share of their details",
        step=cooperative_backward,
    ),
    "cooperative-dropout": Method(
        "of the three masks, dropout only", step=cooperative_backward, options={"masker": RandomChannelMask()}
    ),
    "cooperative-channel": Method(
        "of the three masks, targeted channels only",
        step=cooperative_backward,
        options={"masker": TargetedChannelMask()},
    ),
    "cooperative-spatial": Method(
        "of the three masks, targeted sites only", step=cooperative_backward, options={"masker": TargetedSpatialMask()}
    ),
    "cooperative-hard-masks": Method(
        "masks of 0 in place of soft ones",
        step=cooperative_backward,
        options={
            "masker": OneOf([RandomChannelMask(), TargetedChannelMask(annealing=0), TargetedSpatialMask(annealing=0)])
        },
    ),
    "cooperative-image-only": Method(
        "hard images, no hard segmentations", step=cooperative_backward, options=_off(*SHAPE_BRANCH)
    ),
    "cooperative-shape-only": Method(
        "hard segmentations, no hard images", step=cooperative_backward, options=_off(*IMAGE_BRANCH)
    ),
    "separate": Method(
        "hard examples, but no gradient from the shape prior to the network",
        step=cooperative_backward,
        options={"separate": True},
    ),
    "cooperative-harm": Method(
        "masks where they harm most: what raises the loss to first order is damped, not what the gradient is high on",
        step=cooperative_backward,
        options={"masker": paper_masks("harm")},
    ),
    "cooperative-norm-frozen": Method(
        "batch normalisation learns scale and shift from real images alone, as in the authors' released code",
        step=cooperative_backward,
        norm_frozen=True,
    ),
    "cooperative-ramp": Method(
        "the weight of hard examples rises over the first third of the training", step=cooperative_backward, ramp=1 / 3
    ),
    "cooperative-decoded": Method(
        "hard images are what masked codes decode to, without the details that these don't hold, whatever the network",
        step=cooperative_backward,
        options={"details": 0.0},
    ),
    "cooperative-residual": Method(
        "hard images are the images, changed as masks change their reconstruction",
        step=cooperative_backward,
        options={"details": 1.0},
    ),
    "cooperative-residual-ramp": Method(
        "hard images are the images, changed as masks change their reconstruction, and the weight of hard examples "
        "rises over the first third of the training",
        step=cooperative_backward,
        options={"details": 1.0},
        ramp=1 / 3,
    ),
    "cooperative-details": Method(
        "hard images keep a share, drawn for each, of the details that their code doesn't hold",
        step=cooperative_backward,
        options={"details": (0.0, 1.0)},
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
        options={"saliency_every": 4},
    ),
    "cooperative-hard-share-half": Method(
        "hard examples of half the batch", step=cooperative_backward, options={"hard_share": 0.5}
    ),
    "cooperative-hard-scale-half": Method(
        "hard examples at half the side", step=cooperative_backward, options={"hard_scale": 0.5}
    ),
}
"""All methods by their names, in the order of the table."""

_NAMES = (*METHODS,)
_PAPERS, _LAST = _NAMES.index("cooperative"), _NAMES.index("separate")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "main": _NAMES[: _PAPERS + 1],
    "table2": _NAMES[_PAPERS : _LAST + 1],
    "all": _NAMES,
}
"""Several methods by one name."""


def chosen(names: Sequence[str]) -> list[str]:
    """Spell groups out, each method once and in the order of the table."""
    wanted = {name for given in names for name in GROUPS.get(given, (given,))}
    return [name for name in METHODS if name in wanted]
