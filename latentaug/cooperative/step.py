"""The cooperative step and the standard one: gradients of all losses, in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from latentaug import ranks
from latentaug.checks import flag
from latentaug.cooperative.arguments import check_step
from latentaug.cooperative.averaging import average_gradients, is_averaged_by_wrapper, see_that_weights_are_alike
from latentaug.cooperative.backpropagation import Backpropagation, Backward
from latentaug.cooperative.compiling import opened
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.output import CooperativeOutput, detached, joined
from latentaug.cooperative.stages import InParts, second_stage
from latentaug.tracing.compiled import uncompiled
from latentaug.tracing.intercept import is_compiled
from latentaug.tracing.keeping import is_spread
from latentaug.tracing.moving import held_still


@uncompiled
def cooperative_backward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    scaler: torch.amp.GradScaler | None = None,
    generator: torch.Generator | None = None,
    backward: Backward | None = None,
    scale: float = 1.0,
    average: bool = True,
) -> CooperativeOutput:
    """Do what `model(images, labels).loss.backward()` does, in less memory.

    Backpropagates each loss as soon as its branch of the networks is through, and the standard losses before the hard
    ones; the gradients are the same. They are added to those that are there, and the optimizer is left alone. What is
    wrapped, by DDP or `fabric.setup` for instance, or sharded is backpropagated once for each stage, which saves
    less: on the paper's network half the memory of one backward pass, where branch by branch it is a third. A
    `backward` of one's own changes neither: it costs no memory.

    Where `torch.distributed` is up and nothing around the model averages gradients over ranks, the step does so at its
    end, over all ranks: for a model that a wrapped module holds, as in Lightning, and for one that nothing wraps. It is
    then to be called on every rank. Gradients that something else averages as well come out the same.

    Args:
        model: A `CooperativeModel` in train mode, also wrapped by DDP or FSDP, which synchronise in the second stage.
        images: A batch of images.
        labels: Their labels.
        scaler: Scales the losses before each backward pass, for float16.
        generator: Source of the noise and the masks.
        backward: Callable (loss) in place of `loss.backward()`, as loops have that scale losses or accumulate:
            `accelerator.backward`, `fabric.backward`, a LightningModule's `manual_backward`. It is called on a scalar
            for each part of the step, and each loss is in one of them. What it multiplies gradients by, it multiplies
            all by, once; changes are sampled by saliencies that it doesn't multiply.
        scale: Factor of all gradients: 1 / n for the mean over n batches that are accumulated by hand.
        average: Whether ranks train one model; False for an independent model on each. A wrapper has its own way.

    Returns:
        What the call of the model would return, without a graph; losses without `scale` and whatever `backward` does.

    Raises:
        RuntimeError: The model is in eval mode, or `backward` doesn't backpropagate; or ranks whose gradients are
            averaged begin with different weights.
        ValueError: Both `scaler` and `backward` are given, or `scale` isn't above 0.

    Example:
        >>> from latentaug.nets.ftn import FTN
        >>> images, labels = torch.rand(2, 1, 32, 32), torch.randint(4, (2, 32, 32))
        >>> coop = CooperativeModel(FTN(width=4, depth=2), num_classes=4, example=images)
        >>> optimizer = torch.optim.Adam(coop.parameters(), lr=1e-4)
        >>> output = cooperative_backward(coop, images, labels)
        >>> optimizer.step()
    """
    backpropagate = _checked("cooperative_backward", model, scaler, generator, backward, scale, average)
    with _averaged(model, average):
        return _cooperative_step(opened(model), images, labels, generator, backpropagate)


def _cooperative_step(
    model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator | None, backpropagate: Backpropagation
) -> CooperativeOutput:
    if _can_backpropagate_inside(model):
        return _in_parts(model, images, labels, generator, InParts(backpropagate))
    two_stages = _has_second_stage(model)
    with _without_sync(model) if two_stages else nullcontext():
        standard = model(images, labels, generator=generator, stage="first" if two_stages else "all")
        backpropagate([standard.loss])
    if not two_stages:
        return detached(standard)
    hard = model(images, labels, stage=second_stage(standard))
    with held_still(model):  # as in the hard stage itself: parts that the model checkpoints run again now
        backpropagate([hard.loss])
    return detached(joined(standard, hard))


@uncompiled
def standard_backward(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    scaler: torch.amp.GradScaler | None = None,
    generator: torch.Generator | None = None,
    backward: Backward | None = None,
    scale: float = 1.0,
    average: bool = True,
) -> CooperativeOutput:
    """Backpropagate the standard losses only: what cooperative training is compared with.

    Takes and returns what `cooperative_backward` does; no hard examples are made, and none are returned.

    Raises:
        RuntimeError: The model is in eval mode, or `backward` doesn't backpropagate.
        ValueError: Both `scaler` and `backward` are given, or `scale` isn't above 0.

    Example:
        >>> from latentaug.nets.ftn import FTN
        >>> images, labels = torch.rand(2, 1, 32, 32), torch.randint(4, (2, 32, 32))
        >>> coop = CooperativeModel(FTN(width=4, depth=2), num_classes=4, example=images)
        >>> sorted(standard_backward(coop, images, labels).losses)
        ['reconstruction', 'segmentation', 'shape_from_labels', 'shape_from_logits']
    """
    backpropagate = _checked("standard_backward", model, scaler, generator, backward, scale, average)
    with _averaged(model, average):
        model = opened(model)
        if _can_backpropagate_inside(model):
            return _in_parts(model, images, labels, generator, InParts(backpropagate, "standard"))
        output: CooperativeOutput = model(images, labels, generator=generator, stage="standard")
        backpropagate([output.loss])
        return detached(output)


@contextmanager
def _averaged(model: nn.Module, wished: bool) -> Iterator[None]:
    """Average the gradients that a block makes over all ranks, unless a wrapper does."""
    average = wished and ranks.several() and not is_averaged_by_wrapper(model)
    if average:
        see_that_weights_are_alike(model)
    yield
    if average:
        average_gradients(model)


def _in_parts(
    model: CooperativeModel, images: Tensor, labels: Tensor, generator: torch.Generator | None, stage: InParts
) -> CooperativeOutput:
    """Call the model, and no method of it: libraries put a `forward` in its place that enters autocast."""
    output: CooperativeOutput = model(images, labels, generator=generator, stage=stage)
    return output


def _checked(
    function: str, model: nn.Module, scaler: Any, generator: Any, backward: Any, scale: Any, average: Any
) -> Backpropagation:
    check_step(function, model, scaler, generator, backward, scale)
    flag("average", average)
    if not model.training:
        raise RuntimeError(f"{function} needs the model in train mode; call .train() first.")
    return Backpropagation(backward, scaler=scaler, scale=float(scale))


def _has_second_stage(model: nn.Module) -> bool:
    """Tell whether the next step of a wrapped `CooperativeModel` has a second stage."""
    held = chain([getattr(model.forward, "__self__", None)], model.modules())
    return next(one for one in held if isinstance(one, CooperativeModel)).has_second_stage()


def _without_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """Spare DDP and FSDP the first of two reductions of the gradients; taken or not, they come out the same."""
    if getattr(model, "static_graph", False):
        return nullcontext()  # its first backward pass must reduce: PyTorch fails on an internal assertion otherwise
    no_sync: Callable[[], AbstractContextManager[Any]] = getattr(model, "no_sync", nullcontext)
    return no_sync()


def _can_backpropagate_inside(model: nn.Module) -> TypeGuard[CooperativeModel]:
    """Tell whether gradients may arrive before the call returns.

    Wrappers reduce them in the one pass that follows it, and compiled calls are traced without.
    """
    return isinstance(model, CooperativeModel) and not is_compiled(model) and not is_spread(model)
