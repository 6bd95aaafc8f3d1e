"""The two stages of a step: the losses on the images themselves, and those on hard examples made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from latentaug.cooperative.backpropagation import Backpropagation
from latentaug.cooperative.code_taps import CodeTaps
from latentaug.cooperative.eager_losses import Losses
from latentaug.cooperative.labels import size_of, squeeze_labels
from latentaug.cooperative.maker import Made, decoded_size
from latentaug.cooperative.objective import reconstruction_loss
from latentaug.cooperative.output import CooperativeOutput, detached
from latentaug.cooperative.shortcuts import shrink_labels, taken
from latentaug.nets.functional import one_hot, shrink
from latentaug.tap.plan_cache import moving_in
from latentaug.tracing.isolation import constant_norm_parameters
from latentaug.tracing.keeping import is_spread
from latentaug.tracing.location import unwrap
from latentaug.tracing.moving import held_still

if TYPE_CHECKING:
    from latentaug.cooperative.model import CooperativeModel


class Work(NamedTuple):
    """What a step has to compute: nothing for a loss that weighs nothing, and no hard examples for none."""

    mixes: bool
    """Whether hard images take the place of some of the batch."""
    makes_images: bool
    """Whether hard images are made that have a pass of their own."""
    learns: bool
    """Whether the model learns from segmentations replayed from changed codes."""
    prior_learns: bool
    """Whether the shape prior does."""
    decodes: bool
    """Whether images are decoded in the first stage."""

    @property
    def replays(self) -> bool:
        """Whether segmentations are replayed from changed codes."""
        return self.learns or self.prior_learns

    @property
    def goes_on(self) -> bool:
        """Whether something is learned from constants that the first stage has made."""
        return self.makes_images or self.prior_learns


def work_of(model: CooperativeModel, *, make_hard: bool) -> Work:
    """Return what a step of a model in its mode has to compute."""
    weights, prior = model.weights, model.shape_prior is not None
    decoder = model.reconstruction is not None
    make_hard = make_hard and model.training
    learned = ["hard_image_segmentation", "hard_image_reconstruction"] + ["shape_from_hard_image"] * prior
    wanted = make_hard and decoder and any(weights[name] for name in learned)
    mixes = wanted and model.hard.mix is not None
    return Work(
        mixes=mixes,
        makes_images=wanted and not mixes,
        learns=make_hard and bool(weights["hard_code_segmentation"]),
        prior_learns=make_hard and prior and bool(weights["shape_from_hard_segmentation"]),
        decodes=decoder and (bool(weights["reconstruction"]) or (wanted and not mixes)),
    )


class HardStage(NamedTuple):
    """The second stage of a step, on what the first has made."""

    images: Tensor | None
    segmentation: Tensor | None
    samples: Tensor | None = None


class InParts(NamedTuple):
    """A step, or one stage of it, whose losses are backpropagated within the call, each as its branch ends."""

    backpropagate: Backpropagation
    stage: str | HardStage = "all"


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
    work, maker = work_of(model, make_hard=make_hard), model.maker
    inputs, mixed, places = images, None, None
    if work.mixes:
        assert model.reconstruction is not None
        inputs, mixed, places = maker.mixed(model.model, model.reconstruction, images, generator)
    if model.training:
        inputs = maker.noisy(inputs, generator)
    if inputs is images and (work.decodes or work.makes_images):
        inputs = images.clone()  # which the model may change, and the image decoder is to return as they were
    made = Made(None, None, None, None)

    def segment(decoded: Tensor, samples: Tensor | None) -> Tensor:
        return segmentation_at(model, decoded, taken(labels, samples))

    cut = losses.eager and work.learns and model.can_cut(images)
    with model.tapped(images=work.decodes, segmentations=work.replays, cut=cut) as taps:
        predicted = model.reader.read(model.model(inputs), images.shape[2:], [*taps.codes.values()])
        logits = refined = predicted.main
        for leaf, tensor in taps.cuts:
            losses.stand_in("segmentation", leaf, tensor)
        if model.shape_prior is not None:
            refined = _prior_losses(model, logits, labels, losses)
        reconstructed = decoded(model, taps, images, losses) if work.decodes else None
        # Where the graph is cut at the codes, what follows them is through with its loss.
        add = losses.end if taps.cuts else losses.add
        add("segmentation", predicted.loss(model.loss, labels))
        if work.makes_images or work.replays:
            made = maker.make(
                taps,
                losses,
                model.reconstruction,
                images,
                reconstructed if work.makes_images else None,
                generator,
                segment=segment,
                segmentations=work.replays,
                learn=work.learns,
                # Ranks sample different changes, and a backward pass gathers weights from all ranks or hangs.
                saliency_first=is_spread(model),
            )
            if made.prediction is not None:
                add("hard_code_segmentation", made.prediction.loss(model.loss, labels))
    hard = (mixed, None, places) if work.mixes else made[:3]
    return _output(losses, logits, refined, *hard)


def _prior_losses(model: CooperativeModel, logits: Tensor, labels: Tensor, losses: Losses) -> Tensor:
    """Add the losses of the shape prior that weigh something; return the corrected logits."""
    prior, weights = model.shape_prior, model.weights
    assert prior is not None
    if weights["shape_from_labels"]:
        hot = _as_probabilities(model, labels, logits)
        losses.end("shape_from_labels", model.loss(prior(hot), labels))
    if not weights["shape_from_logits"]:
        return logits if model.training else _refined(model, logits)
    refined = _refined(model, losses.start("shape_from_logits", logits))
    losses.end("shape_from_logits", model.loss(refined, labels))
    return refined


def _as_probabilities(model: CooperativeModel, labels: Tensor, logits: Tensor) -> Tensor:
    """Write labels as the probabilities that a perfect segmentation has, with zeros where they are to be ignored."""
    if model.regions:
        return labels.where(labels != model.ignore_index, 0).to(logits.dtype)
    indices = squeeze_labels(labels, logits.ndim - 2)
    return one_hot(indices, model.num_classes, ignore_index=model.ignore_index, dtype=logits.dtype)


def decoded(model: CooperativeModel, taps: CodeTaps, images: Tensor, losses: Losses) -> Tensor:
    """Return what the image code decodes to, and add its loss."""
    assert model.reconstruction is not None
    assert model.image_code is not None
    code = taps.codes[model.image_code]
    if model.maker.separate_decoder:
        leaf = code.detach().requires_grad_()
        losses.stand_in("reconstruction", leaf, code, further=False)
        code = leaf
    else:
        code = losses.start("reconstruction", code)
    size = decoded_size(model.reconstruction, images.shape[2:])
    reconstructed: Tensor = model.reconstruction(code, size)
    losses.end("reconstruction", reconstruction_loss(reconstructed, shrink(images, size), model.image_range))
    return reconstructed


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
    size = size_of(labels, images.ndim - 2)
    size = model.maker.size(size) if made.segmentation is None else tuple(made.segmentation.shape[2:])
    labels = shrink_labels(taken(labels, made.samples), size)
    logits = refined = images.new_zeros(())
    # Statistics stay frozen while losses are backpropagated here: parts that the model checkpoints run again then.
    with all_held_still(model), constant_norm_parameters(model, model.hard.frozen_norms):
        if made.images is not None:
            clean = shrink(taken(images, made.samples), made.images.shape[2:])
            logits, refined = _hard_image_losses(model, clean, labels, made.images, losses)
        learns = bool(model.weights["shape_from_hard_segmentation"])
        if model.shape_prior is not None and made.segmentation is not None and learns:
            again = model.shape_prior.refine(made.segmentation)
            losses.end("shape_from_hard_segmentation", model.loss(again, labels))
        return _output(losses, logits, refined, *made)


def _hard_image_losses(
    model: CooperativeModel, images: Tensor, labels: Tensor, hard_images: Tensor, losses: Losses
) -> tuple[Tensor, Tensor]:
    """Add the losses on hard images; return the logits, and the corrected ones."""
    weights, prior = model.weights, model.shape_prior
    decodes = bool(weights["hard_image_reconstruction"])
    with model.tapped(images=decodes, segmentations=False) as taps:
        output = model.model(hard_images.clone())
        predicted = model.reader.read(output, size_of(labels, images.ndim - 2), [*taps.codes.values()])
        logits = refined = predicted.main
        if prior is not None and weights["shape_from_hard_image"]:
            refined = _refined(model, losses.start("shape_from_hard_image", logits))
            losses.end("shape_from_hard_image", model.loss(refined, labels))
        if decodes:
            assert model.reconstruction is not None
            assert model.image_code is not None
            code = taps.codes[model.image_code]
            code = code.detach() if model.maker.separate_decoder else losses.start("hard_image_reconstruction", code)
            size = decoded_size(model.reconstruction, images.shape[2:])
            loss = reconstruction_loss(model.reconstruction(code, size), shrink(images, size), model.image_range)
            losses.end("hard_image_reconstruction", loss)
        if weights["hard_image_segmentation"]:
            losses.add("hard_image_segmentation", predicted.loss(model.loss, labels))
    return logits, refined


def _refined(model: CooperativeModel, logits: Tensor) -> Tensor:
    return model.refine(logits.detach() if model.maker.separate else logits)


def second_stage(first: CooperativeOutput) -> HardStage:
    """Return what the second stage of a step goes on from."""
    return HardStage(first.hard_images, first.hard_segmentation, first.hard_samples)


def _output(losses: Losses, *results: Any) -> CooperativeOutput:
    """Gather what a stage returns; where its losses are backpropagated at once, after that and without a graph."""
    if not losses.eager:
        return CooperativeOutput(losses.total, losses.weighted, *results)
    losses.backward()
    return detached(CooperativeOutput(losses.total, losses.weighted, *results))
