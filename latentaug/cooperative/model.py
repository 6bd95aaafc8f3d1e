"""CooperativeModel: any segmentation model, trained on hard examples that are made in its own latent space."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latentaug.augment.base import LatentTransform
from latentaug.checks import called_on_example, flag, whole
from latentaug.cooperative.arguments import Expected, check_model, check_prior
from latentaug.cooperative.build import (
    HALF,
    ImageRange,
    Layers,
    check_decoder_range,
    check_labels,
    check_range,
    check_shapes,
    declaration,
    existing_submodules,
    new_reconstruction_head,
    new_shape_prior,
    placed_like,
    resolve_codes,
    resolve_range,
    separate_submodules,
    transform_pair,
)
from latentaug.cooperative.checkpointing import checkpointed as checkpointing
from latentaug.cooperative.code_taps import CodeTaps
from latentaug.cooperative.compiling import compile_parts, parts_of, tell_of_compiling
from latentaug.cooperative.deployed import corrected, deployed
from latentaug.cooperative.explanation import Explanation, explained
from latentaug.cooperative.given_loss import OutputLoss
from latentaug.cooperative.hard_examples import HardExamples, idle_options
from latentaug.cooperative.image_style import style_layers
from latentaug.cooperative.labels import whole_numbers
from latentaug.cooperative.logits import LogitsReader
from latentaug.cooperative.maker import HardExampleMaker
from latentaug.cooperative.moved import accepts_moved_arguments
from latentaug.cooperative.objective import Loss, Objective
from latentaug.cooperative.output import CooperativeOutput, joined
from latentaug.cooperative.shortcuts import Every
from latentaug.cooperative.stages import (
    HardStage,
    InParts,
    hard_stage,
    second_stage,
    standard_stage,
    work_of,
)
from latentaug.cooperative.trial import try_on_example
from latentaug.discovery.codes import Codes
from latentaug.nets.functional import to_labels
from latentaug.nets.heads import ShapePrior
from latentaug.tracing.compiled import compile_as, gradients_twice, uncompiled
from latentaug.tracing.isolation import (
    gathered_weights,
    preserved_modes,
    sandbox,
)
from latentaug.tracing.location import Location, unwrap
from latentaug.tracing.record import ancestors

logger = logging.getLogger("latentaug")


class CooperativeModel(nn.Module):
    """Train a segmentation model on hard examples that are made in its own latent space.

    In train mode a call computes the loss on the images given, changes codes where that loss is most sensitive, and
    computes the loss of what the model decodes from the changed codes. `loss.backward()` on the result is all a loop
    of your own needs; `cooperative_backward` does the same in less time and memory. In eval mode a call without labels
    is a call of your model.

    Two heads may stand beside the model. With an image decoder (`reconstruction=True`), codes are changed into hard
    images as well, which the model then segments: in a pass of their own, or, with `HardExamples(mix=...)`, among the
    batch. With a shape prior (`shape_prior=True`), segmentations are corrected by what plausible shapes look like.

    Your model is neither copied nor changed: `.model` is the object you passed. A model that declares `image_code`,
    `shape_code` (names of submodules) and `image_decoder` (a module called with a code and a size), as `FTN` does, is
    taken at its word, and trained as in the paper, with both heads. Of any other, `find_levels` finds the codes that
    are changed; with an image decoder `find_codes` does: the bottleneck for segmentations, and for images a code that
    is fine enough to hold one.

    Args:
        model: Any segmentation model that takes a batch of images.
        num_classes: Channels of the logits; 1 means a binary segmentation with one logit.
        regions: Whether channels are regions, which may overlap, such as a tumour and its core, and not classes, of
            which each pixel has one. Labels are then 0 and 1 in a channel for each, and so is what `predict` returns: 1
            where a logit is positive. Default losses are binary cross entropies, the mean over channels.
        example: A batch of images, for the dry runs that find the codes and size the heads.
        codes: Where the codes are. A layer (a dotted name, a module or a `Location`); a list of layers, all of which
            are changed in the segmentation, while images are decoded from the deepest; or what `find_codes` returns, or
            {"image": layer, "shape": layer or layers}, of which either may be left out. Default: what the model
            declares; else what `find_codes` finds, or, without an image decoder, `find_levels`.
        augment: What changes the codes: any transform that asks for no more than the saliency; or a pair, for the image
            code and the shape codes. Default: `paper_masks()`.
        loss: Callable (logits, labels) -> scalar for every segmentation term; or an `OutputLoss`, of all that the model
            returns and labels in any form. It gets labels in the shape that they come in, those of regions in floating
            point, and is tried on the example, but for an `OutputLoss`. Default: `segmentation_loss`.
        weights: Weights that differ from the paper's, by the names of the losses. "hard_code_segmentation", by which
            the model learns to segment from the changed shape codes themselves, weighs 1 where there is no image
            decoder, and 0 otherwise. What weighs 0 is not computed, and is not among the losses.
        image_range: Lowest and highest image value: the noisy images and the reconstruction stay in it. None for images
            without bounds, such as z-scored ones: nothing is clamped, and noise is relative to the batch's deviation.
            Default "example": (0, 1) where the example lies in it, else None; it is logged which.
        ignore_index: Label of pixels that don't count; the shape prior sees zeros there.
        hard: How hard examples are made; see `HardExamples`.
        reconstruction: The image decoder: True for a head at half of the images' resolution; False for none; or a
            module (code, size) -> images of your own, called with a smaller size if it has a `scale`, a float in
            (0, 1]. Default None: what the model declares; a head where `codes` names an image code; or none.
        shape_prior: True for one that fits, at half of the images' resolution; False for none; or a `ShapePrior` of
            your own. Default None: one for a model that declares its codes, at their resolution, and none for any
            other. Without one, "refined" is the model's own segmentation.
        logits: Callable that returns the logits, or a list of them, from what the model returns. Default: a tensor,
            "out" and "aux", "logits", or all that fit in a list or tuple. Under deep supervision all enter the
            segmentation losses, each by its resolution, and the finest that passes through the codes is the
            segmentation.

    Shape:
        images: [B, C, *S].   labels: class indices [B, *S] or [B, 1, *S]; of regions [B, num_classes, *S].

    Samples:
        Noise per pixel; changes once per batch and code, as the transforms say; the samples of `HardExamples.fraction`
        once per batch; its residual once per sample; all from `generator`.

    Raises:
        ValueError: Arguments, images or labels don't fit; values are checked on the first batch only.
        TypeError: `augment` is no transform, or there are no logits in what the model returns.
        RuntimeError: Called in train mode where gradients are disabled.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 4))
        >>> images, labels = torch.rand(2, 1, 32, 32), torch.randint(3, (2, 32, 32))
        >>> coop = CooperativeModel(model, num_classes=3, example=images, codes="1")
        >>> output = coop(images, labels)
        >>> output.loss.backward()
        >>> len(output.losses), output.hard_images
        (2, None)
        >>> coop.predict(images).shape
        torch.Size([2, 32, 32])
    """

    @accepts_moved_arguments
    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        regions: bool = False,
        example: Tensor,
        codes: Codes | Mapping[str, Layers] | Layers | None = None,
        augment: LatentTransform | tuple[LatentTransform, LatentTransform] | None = None,
        loss: Loss | None = None,
        weights: Mapping[str, float] | None = None,
        image_range: ImageRange | Literal["example"] = "example",
        ignore_index: int = -100,
        hard: HardExamples = HardExamples(),  # noqa: B008 - frozen
        reconstruction: nn.Module | bool | None = None,
        shape_prior: ShapePrior | bool | None = None,
        logits: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        check_model(model, num_classes, example, ignore_index, reconstruction, shape_prior)
        self.model = model
        self.num_classes = num_classes
        self.regions = flag("regions", regions)
        self._expected = Expected(example)
        self.reader = LogitsReader(num_classes, logits)
        self._unchecked = True
        self.told_of_compiling = False
        self.image_transform, self.shape_transform = transform_pair(augment)
        declares = declaration(model) is not None
        names_image = isinstance(codes, Mapping) and codes.get("image") is not None
        decodes = declares or names_image if reconstruction is None else reconstruction is not False
        with called_on_example("CooperativeModel", model, example):
            found = resolve_codes(model, codes, example, logits, images=decodes)
        head = reconstruction if isinstance(reconstruction, nn.Module) else None
        own_decoder = head is not None
        self._uses_declared = decodes and found.declared and head is None
        decoder = model.get_submodule("image_decoder") if self._uses_declared else head
        self._image_range = resolve_range(image_range, example, decoder)
        if found.image is not None and decoder is None:
            head = placed_like(new_reconstruction_head(found.image, example, self._image_range), model, example)
        self.reconstruction_head = head
        if shape_prior is True or (shape_prior is None and declares):
            scale = 1.0 if declares else HALF
            shape_prior = placed_like(new_shape_prior(num_classes, example, scale, regions), model, example)
        check_prior(shape_prior, regions)
        self.shape_prior: ShapePrior | None = shape_prior if isinstance(shape_prior, nn.Module) else None
        self.objective = Objective(weights, loss, ignore_index, replays=not decodes, regions=regions)
        if self._takes_outputs and (decodes or self.shape_prior is not None):
            raise ValueError(
                "loss=OutputLoss(...) is of what the model returns, and heads learn from logits. Pass "
                "reconstruction=False and shape_prior=False, or a loss (logits, labels) -> scalar."
            )
        if self.reconstruction is not None:
            check_decoder_range(self.reconstruction, self._image_range)
        self._closed: bool | None = None
        self.maker = HardExampleMaker(
            declared=found.declared,
            codes=(found.image, found.shape),
            transforms=(self.image_transform, self.shape_transform),
            reader=self.reader,
            image_range=self._image_range,
        )
        self.hard = hard
        self._checkpointed: tuple[str, ...] = ()
        try_on_example(self, example, own_decoder=own_decoder)
        compile_parts(self, model)

    # What it was made of ------------------------------------------------------------------------------------------

    @property
    def reconstruction(self) -> nn.Module | None:
        """The module (code, size) -> images: the head for the image code, or the model's own image decoder, or none."""
        return self.model.get_submodule("image_decoder") if self._uses_declared else self.reconstruction_head

    @property
    def image_code(self) -> Location | None:
        """Where images are decoded from, if they are."""
        return self.maker.image_code

    @property
    def shape_codes(self) -> list[Location]:
        """Where segmentations are replayed from."""
        return list(self.maker.shape_codes)

    @property
    def hard(self) -> HardExamples:
        """How hard examples are made; may be set, and is checked then."""
        return self.maker.settings

    @hard.setter
    def hard(self, hard: HardExamples) -> None:
        if not isinstance(hard, HardExamples):
            raise TypeError(f"hard must be HardExamples(...); got {hard!r}.")
        existing_submodules(self, "frozen_norms", hard.frozen_norms)
        if self.reconstruction is None:
            for name in ("style", "mix"):
                if getattr(hard, name) is not None:
                    raise ValueError(
                        f"{name} makes hard images, which takes an image decoder. Pass reconstruction=True."
                    )
        elif hard.style is not None:
            style_layers(self.reconstruction, hard.style_layers)
        if idle := idle_options(hard, decodes=self.reconstruction is not None, corrects=self.shape_prior is not None):
            logger.warning(
                "HardExamples(%s) changes nothing here: this model makes no hard images, or has no shape prior. Pass "
                "reconstruction=True or shape_prior=True, or leave it out.",
                ", ".join(f"{name}={getattr(hard, name)!r}" for name in idle),
            )
        self.style = hard.style  # so that its schedules advance, and are kept in the state dict
        self.saliency_schedule = None if hard.saliency_every == 1 else Every(hard.saliency_every)
        self.maker.settings, self.maker.schedule = hard, self.saliency_schedule
        self.hard_schedule = None if self.maker.every == 1 else Every(self.maker.every)

    @property
    def image_range(self) -> ImageRange:
        """Lowest and highest image value; None for images without bounds."""
        return self._image_range

    @property
    def ignore_index(self) -> int:
        """Label of pixels that don't count."""
        return self.objective.ignore_index

    @property
    def loss(self) -> Loss:
        """The loss (logits, labels) -> scalar of every segmentation term."""
        return self.objective.segmentation

    @property
    def _takes_outputs(self) -> bool:
        return isinstance(self.loss, OutputLoss)

    @property
    def weights(self) -> dict[str, float]:
        """Factor of each loss, by name: a copy; may be set, in whole or in part, and is checked then."""
        return self.objective.weights

    @weights.setter
    def weights(self, weights: Mapping[str, float]) -> None:
        self.objective.weights = weights

    @property
    def checkpointed(self) -> Sequence[str]:
        """Names of submodules whose activations are computed again in the backward pass, and not kept until then.

        The same numbers in less memory and more time. May be set, to names from this model on and none inside another,
        such as "model.encoder.layer1" or "shape_prior.decoder", and is checked then. Blocks above the code save most;
        see `docs/how-to/train-in-3d.md`.
        """
        return self._checkpointed

    @checkpointed.setter
    def checkpointed(self, names: Sequence[str]) -> None:
        self._checkpointed = separate_submodules(self, existing_submodules(self, "checkpointed", names))

    # Calling ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        stage: Literal["all", "standard", "first"] | HardStage | InParts = "all",
    ) -> Any:
        """Return the losses for images with labels; without labels, in eval mode, what the model itself returns.

        Args:
            images: A batch of images, without noise.
            labels: Class indices. In eval mode the standard terms only are computed, without noise.
            generator: Source of the noise and the changes.
            stage: What `cooperative_backward` and `standard_backward` ask a wrapped model for. "standard" are the
                losses on the images themselves; "first" makes hard examples as well; a `HardStage` goes on from there.
                `InParts` backpropagates within the call.
        """
        if torch.compiler.is_compiling():
            tell_of_compiling(self)
        return self._forward(images, labels, generator, stage)

    @uncompiled
    def _forward(
        self,
        images: Tensor,
        labels: Tensor | None,
        generator: torch.Generator | None,
        stage: str | HardStage | InParts,
    ) -> Any:
        if labels is None:
            if self.training:
                raise ValueError(
                    "CooperativeModel needs `labels` in train mode; got None. Pass them, or call .eval() first to get "
                    "the model's own output."
                )
            return self.model(images)
        return self.run_step(images, labels, generator, stage)

    def refine(self, logits: Tensor, steps: int = 1) -> Tensor:
        """Correct a segmentation with the shape prior, `steps` times; every step reads the last one's result.

        Without a shape prior it stays as it is.

        Raises:
            ValueError: `steps` is negative.
        """
        whole("refine", steps, least=0, of="steps")
        return corrected(self.shape_prior, logits, steps)

    @torch.no_grad()
    @uncompiled
    def predict(self, images: Tensor, refine: int = 1) -> Tensor:
        """Return the label map [B, *S] of images, corrected `refine` times; in eval mode and without gradients.

        Of regions it is [B, num_classes, *S], 0 and 1 in a channel for each.
        """
        self._expected.check(self.model, images, None, None)
        whole("refine", refine, least=0, of="steps")
        with preserved_modes(self):
            self.eval()
            logits = self.reader.main(self.model(images), images.shape[2:])
            return to_labels(self.refine(logits, refine), regions=self.regions)

    def deployed(self, refine: int = 1) -> nn.Module:
        """Return what `predict` predicts with as a plain module, for `torch.export`, ONNX and serving.

        It takes images and returns one tensor, the logits [B, num_classes, *S], whose arg-max (of one logit and of
        regions: whose sign) is what `predict` returns. It is a copy: in eval mode, without gradients, and nothing that
        is done to it reaches this model. The state dict of your network is under "model." in its own, by the names that
        it has alone, so `network.load_state_dict(deployed.model.state_dict())`; that of the shape prior is under
        "shape_prior.".

        Args:
            refine: How many times the shape prior corrects the logits; 0 leaves it out. Without one it does nothing.

        Example:
            >>> network = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 4))
            >>> images = torch.rand(2, 1, 32, 32)
            >>> coop = CooperativeModel(network, num_classes=3, example=images, codes="1")
            >>> program = torch.export.export(coop.deployed(), (images,))
            >>> torch.equal(program.module()(images).argmax(1), coop.predict(images))
            True
        """
        whole("refine", refine, least=0, of="steps")
        return deployed(self, refine)

    @uncompiled
    def explain(self, images: Tensor, labels: Tensor, *, generator: torch.Generator | None = None) -> Explanation:
        """Make hard examples of a batch, and return every step of their making; for figures.

        Runs in eval mode, without noise. `latentaug.plot.plot_hard_examples` plots the result.

        Shape:
            images: [B, C, *S].   labels: [B, *S] or [B, 1, *S].
        """
        if labels is None:
            raise ValueError("explain needs `labels`, of whose loss the codes' saliency is; got None.")
        self._expected.check(self.model, images, None if self._takes_outputs else labels, generator)
        return explained(self, images, self._checked(images, labels), generator)

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        shape_codes = ", ".join(map(str, self.shape_codes))
        shown = f"image_code={self.image_code}, shape_code={shape_codes}, image_range={self.image_range}"
        return f"{shown}, hard={self.hard}"

    def tapped(self, *, images: bool = True, segmentations: bool = True, cut: bool = False) -> CodeTaps:
        """Return a context in which the codes of the model's passes are held: those that are of use."""
        return CodeTaps(
            self.model, self.image_code if images else None, self.shape_codes if segmentations else (), cut=cut
        )

    def can_cut(self, images: Tensor) -> bool:
        """Tell whether all that the segmentation gets from before the shape codes comes with these.

        Then what follows them can be derived by itself, and its gradient at the codes is both their saliency and what
        the encoder is derived from. It takes that one call returns them, and that no head learns through them.
        """
        free = self.shape_prior is None or self.maker.separate
        free = free and (self.reconstruction is None or self.maker.separate_decoder)
        if not free or len({code.name for code in self.shape_codes}) > 1:
            return False
        if self._closed is None:
            self._closed = self._is_closed(images[:2])
        return self._closed

    def _is_closed(self, images: Tensor) -> bool:
        with sandbox(unwrap(self.model), images.device), self.tapped(images=False, cut=True) as taps:
            try:
                outputs = self.reader.read(self.model(images.clone()), images.shape[2:]).outputs
            except Exception:  # a model that takes no batch of two; what is wrong otherwise shows in the step itself
                return False
            trunk = ancestors([tensor.grad_fn for _, tensor in taps.cuts])
            after = ancestors([output.grad_fn for output in outputs])
        return bool(trunk) and all(hasattr(node, "variable") for node in trunk & after)  # weights may be shared

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network and the heads, each as `nn.Module.compile` does: parts that hold no tapped layer.

        Of a step, what is between these parts runs as it is written: codes are tapped and changed there, and parts are
        called once more in replays. Takes what `torch.compile` takes.
        """
        for part in parts_of(self).values():
            compile_as(part, lambda call: torch.compile(call, *args, **kwargs))

    # One step -----------------------------------------------------------------------------------------------------

    def run_step(
        self,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
        stage: str | HardStage | InParts,
    ) -> CooperativeOutput:
        """Compute the losses of a step or of one stage of it; in parts, each is backpropagated as its branch ends."""
        self._expected.check(self.model, images, None if self._takes_outputs else labels, generator)
        labels = self._checked(images, labels)
        if not self.training:
            return standard_stage(self, images, labels, None, self.objective.losses(), make_hard=False)
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "CooperativeModel in train mode differentiates its losses, but gradients are disabled here. Leave "
                "torch.no_grad() or inference_mode, or call .eval() first to validate."
            )
        backpropagate = None
        if isinstance(stage, InParts):
            backpropagate, stage = stage
        if not isinstance(stage, HardStage) and stage not in ("all", "standard", "first"):
            raise ValueError(f"stage must be one of 'all', 'standard', 'first' or a HardStage; got {stage!r}.")
        with (
            gradients_twice(),
            gathered_weights(self),
            checkpointing({name: self.get_submodule(name) for name in self._checkpointed}),
        ):
            losses = self.objective.losses(backpropagate)
            if isinstance(stage, HardStage):
                return hard_stage(self, images, labels, stage, losses)
            make_hard = stage != "standard" and (self.hard_schedule is None or self.hard_schedule())
            standard = standard_stage(self, images, labels, generator, losses, make_hard=make_hard)
            if stage != "all" or not work_of(self, make_hard=make_hard).goes_on:
                return standard
            hard = hard_stage(self, images, labels, second_stage(standard), self.objective.losses(backpropagate))
            return joined(standard, hard)

    def has_second_stage(self) -> bool:
        """Tell whether the next step has a second stage in which all of the model learns, from what the first makes.

        What the shape prior alone learns from it is no stage of its own: wrappers wait for gradients of all parameters.
        """
        due = self.hard_schedule is None or self.hard_schedule.is_due
        return due and work_of(self, make_hard=True).makes_images

    # Checking -----------------------------------------------------------------------------------------------------

    def _checked(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return labels as whole numbers; those of regions in floating point, those for an `OutputLoss` as they are.

        Looks at shapes, and at values where the host needn't wait for them: of labels on the CPU, and once of all.
        """
        of_logits = not self._takes_outputs
        if of_logits:
            check_shapes(images, labels, self.num_classes if self.regions else None)
        if self._unchecked:
            check_range(images, self.image_range)
        if of_logits and (self._unchecked or labels.device.type == "cpu"):
            check_labels(labels, 2 if self.regions else self.num_classes, self.ignore_index)
        self._unchecked = False
        if not of_logits:
            return labels
        labels = whole_numbers(labels)
        return labels.to(torch.promote_types(images.dtype, torch.float32)) if self.regions else labels
