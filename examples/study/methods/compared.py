"""The methods of the main table."""

from __future__ import annotations

from collections.abc import Mapping

from latentaug import RandomChannelMask, cooperative_backward
from study.methods.method import Method, off
from study.methods.steps import mixup_backward, plain_backward
from study.methods.transforms import bias_field, gaussian_noise, random_convolution

COMPARED: Mapping[str, Method] = {
    "plain": Method(
        "the network alone, by its cross entropy", step=plain_backward, heads=False, reconstructs=False, refines=False
    ),
    "standard": Method("no hard examples"),
    "standard-without-stn": Method(
        "the network alone, without a shape prior",
        options=off("shape_from_logits", "shape_from_labels"),
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
        options={"augment": RandomChannelMask((0, 0.5))},
    ),
    "cooperative": Method(
        "the paper's method; of a network that isn't the paper's, hard images keep a sampled fraction of the residual",
        step=cooperative_backward,
    ),
}
