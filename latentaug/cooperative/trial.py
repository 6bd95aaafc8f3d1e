"""What a cooperative model is tried with when it is made, so that what doesn't fit is refused there, and not later."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latentaug.checks import scalar
from latentaug.cooperative.arguments import check_decoder
from latentaug.cooperative.given_loss import GivenLoss
from latentaug.cooperative.logits import finest, read_logits, tell_of_probabilities
from latentaug.cooperative.maker import decoded_size
from latentaug.nets.functional import shrink
from latentaug.tracing.isolation import preserved_modes, sandbox
from latentaug.tracing.location import unwrap

if TYPE_CHECKING:
    from latentaug.cooperative.model import CooperativeModel


def try_on_example(model: CooperativeModel, example: Tensor, *, own_decoder: bool) -> None:
    """Read the logits of one pass over the example, and take their loss; nothing about the model is changed.

    Args:
        model: The model.
        example: A batch of images.
        own_decoder: Whether the image decoder is the user's.

    Raises:
        TypeError: There are no logits in what the model returns, or the image decoder or the loss is none.
        ValueError: They, hard images or the loss don't fit.
    """
    reader = model.reader
    # Each pass has a copy, as models may change what they are given.
    with preserved_modes(model.model), sandbox(unwrap(model.model), example.device):
        model.model.eval()
        with torch.enable_grad():  # so that the last activation can be seen
            outputs = read_logits(model.model(example.clone()), model.num_classes, example.ndim - 2, reader.reader)
        tell_of_probabilities(type(unwrap(model.model)).__name__, outputs)
        outputs = [output.detach() for output in outputs]  # whose graph need not be kept any longer
        if len(finest(outputs)) > 1 or own_decoder:
            with model.tapped() as taps:
                reader.read(model.model(example.clone()), example.shape[2:], [*taps.codes.values()])
                if own_decoder and model.reconstruction is not None and model.image_code is not None:
                    size = decoded_size(model.reconstruction, example.shape[2:])
                    check_decoder(model.reconstruction, taps.codes[model.image_code].detach(), example, size)
        _try_size(model, example)
        if isinstance(model.loss, GivenLoss):
            logits = outputs[0].new_zeros((len(example), model.num_classes, *example.shape[2:]))
            try_loss(model.loss, logits, regions=model.regions)


def _try_size(model: CooperativeModel, example: Tensor) -> None:
    """See that the model takes images of the size of hard examples."""
    size = model.maker.size(example.shape[2:])
    if size == example.shape[2:]:
        return
    try:
        with torch.no_grad():
            model.model(shrink(example.clone(), size))
    except Exception as error:
        raise ValueError(
            f"CooperativeModel with scale={model.hard.scale:g} needs a model that takes images of size {size}; "
            f"{type(model.model).__name__} raised {type(error).__name__}: {error} Pass another scale, or 1."
        ) from error


def try_loss(loss: GivenLoss, logits: Tensor, *, regions: bool) -> None:
    """See that a user's loss takes labels in one of the shapes that they may come in.

    Args:
        loss: The loss; one that is a module is left as it was.
        logits: Logits [B, C, *S].
        regions: Whether labels are those of regions.

    Raises:
        ValueError: It fails on all, or returns no scalar.
        TypeError: It returns no tensor.
    """
    own = loss.loss
    failures = []
    for labels in _labels_for(logits, regions):
        with ExitStack() as stack:
            if isinstance(own, nn.Module):
                stack.enter_context(sandbox(own, logits.device))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of shapes that may not be the user's
            try:
                value = loss(logits.detach().requires_grad_(), labels)
            except torch.cuda.OutOfMemoryError:
                return
            except Exception as error:  # of whatever kind losses raise
                reason = str(error.__cause__ or error).strip().splitlines()
                failures.append(f"labels {tuple(labels.shape)} of {labels.dtype}: {reason[0] if reason else error!r}")
                continue
        scalar("loss", value, who="CooperativeModel")
        return
    raise ValueError(
        f"loss must take logits and labels as they come; with logits {tuple(logits.shape)}, as the example has, it "
        f"failed on {'; '.join(failures)}\nPass a loss that takes "
        + ("0 and 1 in a channel for each region." if regions else "class indices [B, *S] or [B, 1, *S].")
    )


def _labels_for(logits: Tensor, regions: bool) -> Iterator[Tensor]:
    """Yield labels of every class, in each shape and type that labels come in."""
    batch, classes, *size = logits.shape
    shapes: Sequence[tuple[int, ...]] = [(batch, classes, *size)] if regions else [(batch, *size), (batch, 1, *size)]
    for dtype in (torch.float32,) if regions else (torch.int64, torch.float32):
        for shape in shapes:
            positions = torch.arange(math.prod(shape), device=logits.device).view(shape)
            yield (positions % (2 if regions else max(classes, 2))).to(dtype)
