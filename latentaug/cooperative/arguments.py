"""Checks of what `CooperativeModel` and its steps are given, where it comes in."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.checks import described, ignored_label, module, number, random_source, shown, tensor, whole
from latentaug.tracing.isolation import preserved_modes, sandbox
from latentaug.tracing.location import unwrap


def check_model(
    model: object,
    num_classes: object,
    example: object,
    ignore_index: object,
    reconstruction: object,
    shape_prior: object,
) -> None:
    """See that a model and what goes with it are of the right kinds.

    Raises:
        TypeError: One is not.
        ValueError: A number is out of range, or the example is no batch of images.
    """
    if hasattr(unwrap(module("model", model, who="CooperativeModel")), "has_second_stage"):
        raise TypeError("model is a CooperativeModel already. Pass the network that it wraps, or use it as it is.")
    whole("num_classes", num_classes)
    check_images("example", example)
    ignored_label(ignore_index)
    if reconstruction is not None and not isinstance(reconstruction, bool):
        module("reconstruction", reconstruction, who="CooperativeModel")
    if not (
        shape_prior is None
        or isinstance(shape_prior, bool)
        or (isinstance(shape_prior, nn.Module) and hasattr(shape_prior, "refine"))
    ):
        raise TypeError(f"shape_prior must be a ShapePrior, True, False or None; got {shown(shape_prior)}.")


def check_prior(prior: object, regions: bool) -> None:
    """See that a user's shape prior takes channels for what they are.

    Raises:
        ValueError: It doesn't.
    """
    if isinstance(prior, nn.Module) and getattr(prior, "regions", regions) != regions:
        raise ValueError(
            f"shape_prior must be of {'regions' if regions else 'classes'}, as the CooperativeModel is; got a "
            f"{type(prior).__name__} of the other kind. Make it with regions={regions}."
        )


def check_images(name: str, images: object) -> Tensor:
    """Check a batch of images.

    Raises:
        TypeError: It is no floating-point tensor.
        ValueError: It is empty, or has no batch, channel or spatial axis.
    """
    checked = tensor(name, images, who="CooperativeModel")
    if checked.ndim < 3 or not checked.numel():
        raise ValueError(
            f"CooperativeModel needs {name}, a batch of images [B, C, *S] of one sample at least; got "
            f"{described(checked)}."
        )
    return checked


def check_decoder(decoder: nn.Module, code: Tensor, example: Tensor, size: tuple[int, ...]) -> None:
    """See that a user's image decoder makes images like the example from a code, at the size that it is asked for.

    Raises:
        TypeError: It cannot be called with a code and a size.
        ValueError: It returns something else.
    """
    try:
        with preserved_modes(decoder), sandbox(decoder, example.device), torch.no_grad():
            images = decoder.eval()(code, size)
    except Exception as error:
        raise TypeError(
            f"reconstruction must be a module (code, size) -> images; {type(decoder).__name__} called with a code "
            f"{tuple(code.shape)} and the size {size} raised {type(error).__name__}: {error}"
        ) from error
    expected = (*example.shape[:2], *size)
    if not isinstance(images, Tensor) or images.shape != expected:
        raise ValueError(
            f"reconstruction must return images of shape {expected} for the example and the size {size}; "
            f"{type(decoder).__name__} returned {described(images)}."
        )


class Expected:
    """What batches must be like: the example.

    Args:
        example: The images that the model was made with.
    """

    def __init__(self, example: Tensor) -> None:
        self._axes = example.ndim
        self._channels = example.shape[1]

    def check(self, model: nn.Module, images: object, labels: Any, generator: object) -> None:
        """Check a batch.

        Raises:
            TypeError: Images or labels are no tensors, or images are of another dtype than the model.
            ValueError: They have another number of axes or channels than the example, are empty, or are elsewhere.
        """
        random_source(generator)
        batch = check_images("images", images)
        if batch.ndim != self._axes or batch.shape[1] != self._channels:
            like = ("B", self._channels, *["n"] * (self._axes - 2))
            raise ValueError(
                f"CooperativeModel needs images like the example, [{', '.join(map(str, like))}]; got shape "
                f"{tuple(batch.shape)}."
            )
        weight = next(model.parameters(), batch)
        if batch.device != weight.device:
            raise ValueError(
                f"CooperativeModel needs images on {weight.device}, where the model is; got them on {batch.device}. "
                f"Write images.to({str(weight.device)!r})."
            )
        precise = batch.dtype == weight.dtype or torch.is_autocast_enabled(batch.device.type)
        if weight.is_floating_point() and not precise and batch.dtype != torch.float32:
            raise TypeError(
                f"CooperativeModel needs images of {weight.dtype}, as its weights are; got {batch.dtype}. Write "
                f"images.to({weight.dtype}), or use torch.autocast."
            )
        if labels is None:
            return
        if not isinstance(labels, Tensor):
            raise TypeError(f"CooperativeModel needs labels, a tensor of class indices; got {shown(labels)}.")
        if labels.device != batch.device:
            raise ValueError(
                f"CooperativeModel needs labels on {batch.device}, where the images are; got {described(labels)}."
            )


def check_step(
    function: str,
    model: nn.Module,
    scaler: object,
    generator: object,
    backward: object = None,
    scale: object = 1.0,
) -> None:
    """See that a step is one of a cooperative model.

    Raises:
        TypeError: It is not, or something is of another kind.
        ValueError: Both `scaler` and `backward` are given, or `scale` isn't above 0.
    """
    module("model", model, who=function)
    takes = inspect.signature(model.forward).parameters
    if "stage" not in takes and not any(one.kind is one.VAR_KEYWORD for one in takes.values()):
        raise TypeError(
            f"{function} needs `model` to be a CooperativeModel, also wrapped; got a {type(model).__name__}. Write "
            f"CooperativeModel({type(model).__name__.lower()}, num_classes=..., example=images)."
        )
    if scaler is not None and not hasattr(scaler, "scale"):
        raise TypeError(f"scaler must be a torch.amp.GradScaler or None; got {shown(scaler)}.")
    random_source(generator)
    if backward is not None and (isinstance(backward, type) or not callable(backward)):
        raise TypeError(f"backward must be a callable (loss) that backpropagates; got {shown(backward)}.")
    if scaler is not None and backward is not None:
        raise ValueError(
            f"{function} takes `scaler` or `backward`; got both. Leave scaler out where backward scales the losses."
        )
    number("scale", scale, above=0)
