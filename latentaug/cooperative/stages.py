"""The two stages of a step: the losses on the images themselves, and those on hard examples made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from latentaug.cooperative.eager_losses import Losses
from latentaug.cooperative.labels import size_of, squeeze_labels
from latentaug.cooperative.objective import reconstruction_loss
from latentaug.cooperative.output import CooperativeOutput, detached
from latentaug.cooperative.shortcuts import shrink, shrink_labels, taken
from latentaug.nets.functional import one_hot
from latentaug.tap.plan_cache import moving_in
from latentaug.tracing.isolation import constant_norm_parameters, is_sharded
from latentaug.tracing.location import unwrap
from latentaug.tracing.moving import held_still

if TYPE_CHECKING:
    from latentaug.cooperative.model import CooperativeModel


class HardStage(NamedTuple):
    """The second stage of a step, on what the first has made."""

    images: Tensor
    segmentation: Tensor | None
    samples: Tensor | None = None


def standard_stage(
    model: CooperativeModel,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator | None,
    losses: Losses,
    *,
    make_hard: bool,
) -> CooperativeOutput:
    """Compute the losses on the images themselves, and make the hard examples while their graph is alive."""
    inputs = model.maker.noisy(images, generator) if model.training else images
    made = None

    def segment(decoded: Tensor, samples: Tensor | None) -> Tensor:
        return segmentation_at(model, decoded, taken(labels, samples))

    with model.tapped() as taps:
        predicted = model.reader.read(model.model(inputs), images.shape[2:], [*taps.codes.values()])
        logits = refined = predicted.main
        if model.shape_prior is not None:
            indices = squeeze_labels(labels, images.ndim - 2)
            hot = one_hot(indices, model.num_classes, ignore_index=model.ignore_index, dtype=logits.dtype)
            losses.end("shape_from_labels", model.loss(model.shape_prior(hot), labels))
            refined = _refined(model, losses.start("shape_from_logits", logits))
            losses.end("shape_from_logits", model.loss(refined, labels))
        code = losses.start("reconstruction", taps.codes[model.image_code])
        reconstructed = model.reconstruction(code, images.shape[2:])
        losses.end("reconstruction", reconstruction_loss(reconstructed, images, model.image_range))
        losses.add("segmentation", predicted.loss(model.loss, labels))
        if make_hard:
            learn = bool(model.weights["hard_code_segmentation"])
            made = model.maker.make(
                taps,
                losses,
                model.reconstruction,
                images,
                reconstructed,
                generator,
                segment=segment,
                segmentations=learn or model.shape_prior is not None,
                learn=learn,
                # Ranks sample different changes, and a backward pass gathers weights from all ranks or hangs.
                saliency_first=is_sharded(model),
            )
            if made.prediction is not None:
                losses.add("hard_code_segmentation", made.prediction.loss(model.loss, labels))
    return _output(losses, logits, refined, *((None,) * 3 if made is None else made[:3]))


def segmentation_at(model: CooperativeModel, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of the segmentation of images, without a trace in running statistics."""
    with segmenter_held_still(model):
        return model.reader.read(model.model(images), images.shape[2:]).loss(model.loss, labels)


def segmenter_held_still(model: CooperativeModel) -> AbstractContextManager[None]:
    """Return a context in which passes of the user's model leave no trace in what it keeps."""
    root = unwrap(model.model)
    return held_still(root, moving_in(root))


@contextmanager
def all_held_still(model: CooperativeModel) -> Iterator[None]:
    """Let the user's model and the heads beside it run without a trace in what they keep."""
    with ExitStack() as stack:
        stack.enter_context(segmenter_held_still(model))
        for head in (model.reconstruction_head, model.shape_prior):
            if head is not None:
                stack.enter_context(held_still(head))
        yield


def hard_stage(
    model: CooperativeModel, images: Tensor, labels: Tensor, made: HardStage, losses: Losses
) -> CooperativeOutput:
    """Compute the same losses on hard examples, without a trace in running statistics."""
    images = shrink(taken(images, made.samples), made.images.shape[2:])
    spatial_dims = images.ndim - 2
    size = model.maker.size(size_of(labels, spatial_dims)) if made.segmentation is None else made.segmentation.shape[2:]
    labels = shrink_labels(taken(labels, made.samples), size)
    # Statistics stay frozen while losses are backpropagated here: parts that the model checkpoints run again then.
    with all_held_still(model), constant_norm_parameters(model, model.hard.frozen_norms):
        with model.tapped() as taps:
            predicted = model.reader.read(
                model.model(made.images), size_of(labels, spatial_dims), [*taps.codes.values()]
            )
            logits = refined = predicted.main
            if model.shape_prior is not None:
                refined = _refined(model, losses.start("shape_from_hard_image", logits))
                losses.end("shape_from_hard_image", model.loss(refined, labels))
            code = losses.start("hard_image_reconstruction", taps.codes[model.image_code])
            reconstructed = model.reconstruction(code, images.shape[2:])
            losses.end("hard_image_reconstruction", reconstruction_loss(reconstructed, images, model.image_range))
            if model.shape_prior is not None and made.segmentation is not None:
                again = model.shape_prior.refine(made.segmentation)
                losses.end("shape_from_hard_segmentation", model.loss(again, labels))
            losses.add("hard_image_segmentation", predicted.loss(model.loss, labels))
        return _output(losses, logits, refined, *made)


def _refined(model: CooperativeModel, logits: Tensor) -> Tensor:
    return model.refine(logits.detach() if model.hard.separate else logits)


def second_stage(first: CooperativeOutput) -> HardStage:
    """Return what the second stage of a step goes on from."""
    assert first.hard_images is not None
    return HardStage(first.hard_images, first.hard_segmentation, first.hard_samples)


def _output(losses: Losses, *results: Any) -> CooperativeOutput:
    """Gather what a stage returns; where its losses are backpropagated at once, after that and without a graph."""
    if not losses.eager:
        return CooperativeOutput(losses.total, losses.weighted, *results)
    losses.backward()
    return detached(CooperativeOutput(losses.total, losses.weighted, *results))
