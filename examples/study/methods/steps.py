"""Training steps that are not the library's own."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from latentaug import CooperativeModel, CooperativeOutput
from study.methods.method import NOISE

MIXING = 0.2
"""Both parameters of the beta distribution that mixup draws from."""


def plain_backward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    scaler: torch.amp.GradScaler | None = None,
    generator: torch.Generator | None = None,
    mixed: Callable[..., Tensor] | None = None,
) -> CooperativeOutput:
    """Train the network alone by its cross entropy, on images as noisy as all other methods see them.

    Neither the image decoder nor the shape prior is called, and neither gets a gradient. `mixed`, given a loss, logits
    and labels, returns the loss where a change of codes has mixed labels too.

    Draws:
        Noise per pixel, from `generator`, on its device.
    """
    assert isinstance(model, CooperativeModel)
    generator = generator or torch.default_generator
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    logits = model.model((images + NOISE * noise).clamp(0, 1))
    loss = model.loss(logits, labels) if mixed is None else mixed(model.loss, logits, labels)
    _backpropagate(loss, scaler)
    terms = {"segmentation": loss.detach()}
    return CooperativeOutput(loss.detach(), terms, logits.detach(), logits.detach(), None, None)


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
    output = model(mixed, labels, generator=generator, stage="standard")
    losses = dict(output.losses)
    for name, logits in (("segmentation", output.logits), ("shape_from_logits", output.refined)):
        losses[name] = share * losses[name] + (1 - share) * model.weights[name] * model.loss(logits, labels[order])
    loss = torch.stack([*losses.values()]).sum()
    _backpropagate(loss, scaler)
    return output._replace(loss=loss, losses=losses)


def _backpropagate(loss: Tensor, scaler: torch.amp.GradScaler | None) -> None:
    with torch.autocast(loss.device.type, enabled=False):
        torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
