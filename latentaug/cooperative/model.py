"""CooperativeModel: any segmentation model, trained together with a reconstruction head and a shape prior."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from latentaug.augment.base import LatentTransform
from latentaug.augment.compose import paper_masks
from latentaug.augment.masks import LatentMask
from latentaug.augment.ranges import Range, as_range, draw
from latentaug.cooperative.build import (
    check_batch,
    check_decoder_range,
    coarsest,
    complete_weights,
    declaration,
    existing_submodules,
    located,
    masker_pair,
    new_reconstruction_head,
    new_shape_prior,
    placed_like,
    positive_share,
    saliency_schedule,
    separate_submodules,
)
from latentaug.cooperative.checkpointing import checkpointed as checkpointing
from latentaug.cooperative.code_taps import CodeTaps
from latentaug.cooperative.eager_losses import Losses
from latentaug.cooperative.hard_examples import draw_samples, scaled_size, shrink, shrink_labels, taken
from latentaug.cooperative.logits import Prediction, at_size, finest, read_logits
from latentaug.cooperative.losses import reconstruction_loss, segmentation_loss, squeeze_labels
from latentaug.cooperative.output import CooperativeOutput, HardExamples, detached, joined
from latentaug.discovery.codes import DETAILS, find_codes
from latentaug.nets.functional import one_hot, to_labels
from latentaug.nets.heads import ShapePrior
from latentaug.tap.latent_tap import Layer
from latentaug.tracing.isolation import (
    constant_norm_parameters,
    frozen_norm_statistics,
    gathered_weights,
    is_sharded,
    preserved_modes,
    sandbox,
)
from latentaug.tracing.location import Location, unwrap
from latentaug.tracing.record import depends

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


Noise: TypeAlias = Callable[[Tensor, torch.Generator | None], Tensor]


Stage: TypeAlias = Literal["both", "plain", "standard", "hard"]


STAGES = get_args(Stage)


class _Masked(NamedTuple):
    """A code and the mask drawn for it."""

    location: Location
    code: Tensor
    saliency: Callable[[], Tensor]
    mask: LatentMask

    def shown(self) -> tuple[Tensor, Tensor]:
        """Return saliency and factor with channels first."""
        see = self.location.layout.to_channels_first
        return see(self.saliency()), see(self.mask.factor)


class CooperativeModel(nn.Module):
    """Train a segmentation model against hard examples made in its own latent space.

    Puts two heads beside the model: one that reconstructs the image from the latent code, and a shape prior that
    corrects segmentations. In train mode a call computes the losses on the images given, masks the codes where the
    losses are most sensitive, and computes the losses again on what the masked codes decode to.
    `loss.backward()` on the result is all a loop of your own needs; `cooperative_backward` does the same in much
    less memory. In eval mode a call without labels is a call of your model.

    Your model is neither copied nor changed: `.model` is the object you passed. A model that declares `image_code`,
    `shape_code` (names of submodules) and `image_decoder` (a module called with a code and a size), as `FTN` does, is
    taken at its word; on any other, `find_codes` finds the codes: the bottleneck for segmentations, and for images a
    code that is fine enough to hold one.

    Args:
        model: Any segmentation model that takes a batch of images.
        num_classes: Channels of the logits; 1 means a binary segmentation with one logit.
        example: A batch of images, for the dry runs that find the codes and size the heads.
        layer: Where the codes are: a dotted name, a module or a `Location`. Of a list, every layer is masked in the
            segmentation, and the deepest is the image code. Default: what the model declares, or `find_codes` finds.
        masker: Makes hard examples; a pair masks the image code and the shape code differently. Default:
            `paper_masks()`.
        image_code: The layer that images are reconstructed from, if another than by `layer` or its default.
        shape_code: The layer, or list of layers, masked in the segmentation, likewise.
        loss: Callable (logits, labels) -> scalar for every segmentation term. Default: `segmentation_loss`.
        weights: Weights that differ from the paper's, by the names of the losses; see `WEIGHTS`. With a weight for
            "hard_code_segmentation" the model also learns to segment from the masked shape codes themselves.
        temperature: What logits are divided by before the shape prior reads them.
        input_noise: Standard deviation of the noise on training images, as a share of `image_range`; or a callable
            (images, generator) -> noisy images.
        image_range: Lowest and highest image value: the noisy images and the reconstruction stay in it. None for images
            without bounds, such as z-scored ones: nothing is clamped, and noise is relative to the batch's deviation.
        ignore_index: Label of pixels that don't count; the shape prior sees zeros there.
        separate: Stop the gradient from the shape prior into the model (an ablation of the paper).
        logits: Callable that returns the logits, or a list of them, from what the model returns. Default: a tensor,
            "out" and "aux", "logits", or all that fit in a list or tuple. Under deep supervision all enter the
            segmentation losses, each by its resolution, and the finest that passes through the codes is the
            segmentation.
        reconstruction: Your own module (code, size) -> images, in place of the head that would be made.
        shape_prior: Your own `ShapePrior`, in place of the one that would be made.
        details: Share of the details that hard images keep, where an image code doesn't hold them: what the image has
            beyond its reconstruction. 0, the paper's: a hard image is what the masked code decodes to, and as blurred.
            1: the image itself, changed by as much as masking changes its reconstruction. A pair is drawn from
            uniformly. Default: 0 for the image code that a model declares, as `FTN` does, and (0, 1) for any
            other: models with skip connections have codes that hold few details. See "Which code" in
            `docs/explanation/cardiac-example.md`.
        hard_norm_frozen: Names of submodules, from this model on, whose batch normalisation learns no scale and shift
            from the hard losses. The authors' code does so in all its networks but the image decoder; the paper doesn't
            say it. Such parameters are unused in the second stage of `cooperative_backward`, which DDP must be told.
        checkpointed: Names of submodules, from this model on and none inside another, such as "model.encoder.layer1" or
            "shape_prior.decoder", whose activations are computed again in the backward pass and not kept until then:
            the same numbers in less memory and more time. Blocks above the code save most; see
            `docs/how-to/train-in-3d.md`.
        saliency_every: Batches from one that is masked by its saliency to the next. Between them, maskers that ask for
            the saliency are given noise: masks of the same kind, share and strength at random places. What was salient
            in one batch says nothing about the next one's samples, so that it is not used again. The state dict keeps
            the count. Default 1, as in the paper; more is cheaper and changes the numbers, as do the next two.
        hard_share: Share of the batch, in (0, 1], that hard examples are made of; one sample at least.
        hard_scale: Size of hard examples along each axis, in (0, 1], relative to the images; up to whole sites of the
            deepest code. Images, segmentations and the clean images are averaged, of labels the nearest are taken.

    Shape:
        images: [B, C, *S].   labels: class indices [B, *S] or [B, 1, *S].

    Draws:
        Noise per pixel; masks once per batch and code, as the maskers say, or their noise per entry of the code; the
        samples of `hard_share` once per batch; `details` once per sample; all from `generator`.

    Raises:
        ValueError: Arguments, images or labels don't fit; values are checked on the first batch only.
        TypeError: `masker` is no masker, or there are no logits in what the model returns.
        RuntimeError: Called in train mode where gradients are disabled.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 4))
        >>> images, labels = torch.rand(2, 1, 32, 32), torch.randint(3, (2, 32, 32))
        >>> coop = CooperativeModel(model, num_classes=3, example=images, layer="1")
        >>> output = coop(images, labels)
        >>> output.loss.backward()
        >>> len(output.losses), output.hard_images.shape
        (8, torch.Size([2, 1, 32, 32]))
        >>> coop.predict(images).shape
        torch.Size([2, 32, 32])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        example: Tensor,
        layer: Layer | Sequence[Layer] | None = None,
        masker: LatentTransform | tuple[LatentTransform, LatentTransform] | None = None,
        image_code: Layer | None = None,
        shape_code: Layer | Sequence[Layer] | None = None,
        loss: Loss | None = None,
        weights: Mapping[str, float] | None = None,
        temperature: float = 2.0,
        input_noise: float | Noise = 0.05,
        image_range: tuple[float, float] | None = (0.0, 1.0),
        ignore_index: int = -100,
        separate: bool = False,
        logits: Callable[[Any], Any] | None = None,
        reconstruction: nn.Module | None = None,
        shape_prior: ShapePrior | None = None,
        details: Range | None = None,
        hard_norm_frozen: Sequence[str] = (),
        checkpointed: Sequence[str] = (),
        saliency_every: int = 1,
        hard_share: float = 1.0,
        hard_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.saliency_schedule = saliency_schedule(saliency_every)
        self.hard_share = positive_share("hard_share", hard_share)
        self.hard_scale = positive_share("hard_scale", hard_scale)
        self.model = model
        self.num_classes = num_classes
        self.loss = functools.partial(segmentation_loss, ignore_index=ignore_index) if loss is None else loss
        self.weights = complete_weights(weights or {})
        self.input_noise = input_noise
        self.image_range = image_range
        self.ignore_index = ignore_index
        self.separate = separate
        self.read_logits = logits
        self._main_outputs: dict[int, int] = {}  # position by the number of outputs, where several are finest
        self._unchecked = True
        self.image_masker, self.shape_masker = masker_pair(paper_masks() if masker is None else masker)

        declared = declaration(model)
        if declared is not None and layer is None:
            image_code = declared.image_code if image_code is None else image_code
            shape_code = declared.shape_code if shape_code is None else shape_code
        elif layer is None and (image_code is None or shape_code is None):
            codes = find_codes(model, example, logits=logits)
            image_code = codes.image if image_code is None else image_code
            shape_code = codes.shape if shape_code is None else shape_code
        self.shape_codes = located(model, layer if shape_code is None else shape_code, example)
        self.image_code = coarsest(located(model, layer if image_code is None else image_code, example))

        declares = declared is not None and declared.image_code == str(self.image_code)
        if reconstruction is None and not declares:
            reconstruction = placed_like(new_reconstruction_head(self.image_code, example, image_range), model, example)
        self.reconstruction_head = reconstruction
        self.shape_prior = shape_prior or placed_like(
            new_shape_prior(num_classes, temperature, example), model, example
        )
        check_decoder_range(self.reconstruction, image_range)
        self.details = as_range("details", (0.0 if declares else DETAILS) if details is None else details)
        self.hard_norm_frozen = existing_submodules(self, "hard_norm_frozen", hard_norm_frozen)
        self.checkpointed = checkpointed
        self._try(example)

    @property
    def reconstruction(self) -> nn.Module:
        """The module (code, size) -> images: the head made for the image code, or the model's own image decoder."""
        head = self.reconstruction_head
        return self.model.get_submodule("image_decoder") if head is None else head

    @property
    def checkpointed(self) -> Sequence[str]:
        """Names of the submodules that are computed again in the backward pass; may be set, and is checked then."""
        return self._checkpointed

    @checkpointed.setter
    def checkpointed(self, names: Sequence[str]) -> None:
        self._checkpointed = separate_submodules(self, existing_submodules(self, "checkpointed", names))

    # Calling ----------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        stage: Stage = "both",
        hard_examples: tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None] | None = None,
        backward: bool = False,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Any:
        """Return the losses for images with labels; without labels, in eval mode, what the model itself returns.

        Args:
            images: A batch of images, without noise.
            labels: Class indices. In eval mode the standard terms only are computed, without noise.
            generator: Source of the noise and the masks.
            stage: "standard" stops once the hard examples are made, "hard" goes on from there. Together they are what
                "both" does; see `cooperative_backward`. "plain" computes the standard losses and no hard examples.
            hard_examples: The images and the segmentation that the standard stage made, and of which samples if not of
                all; for the hard stage only. `images` and `labels` remain those of the whole batch, at their own size.
            backward: Backpropagate the losses here, each as soon as its branch of the networks is through; nothing that
                is returned has a graph then. See `cooperative_backward`.
            scaler: Scales what is backpropagated here, for float16.
        """
        if labels is None:
            if self.training:
                raise ValueError(
                    "CooperativeModel needs `labels` in train mode; got None. Pass them, or call .eval() first to get "
                    "the model's own output."
                )
            return self.model(images)
        labels = squeeze_labels(labels, images.ndim - 2)
        self._check_once(images, labels)
        labels = labels.long()
        losses = functools.partial(Losses, self.weights, eager=backward, scaler=scaler)
        if not self.training:
            return self._standard_stage(images, labels, None, losses(), make_hard=False)
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "CooperativeModel in train mode differentiates its losses, but gradients are disabled here. Leave "
                "torch.no_grad() or inference_mode, or call .eval() first to validate."
            )
        if stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(map(repr, STAGES))}; got {stage!r}.")
        with gathered_weights(self), checkpointing({name: self.get_submodule(name) for name in self.checkpointed}):
            if stage == "hard":
                if hard_examples is None:
                    raise ValueError("CooperativeModel needs `hard_examples` for stage='hard'; got None.")
                return self._hard_stage(images, labels, *hard_examples, losses=losses())
            standard = self._standard_stage(images, labels, generator, losses(), make_hard=stage != "plain")
            if stage in ("plain", "standard"):
                return standard
            assert standard.hard_images is not None
            assert standard.hard_segmentation is not None
            hard = self._hard_stage(
                images, labels, standard.hard_images, standard.hard_segmentation, standard.hard_samples, losses=losses()
            )
            return joined(standard, hard)

    def refine(self, logits: Tensor, steps: int = 1) -> Tensor:
        """Correct a segmentation with the shape prior, `steps` times; every step reads the last one's result.

        Raises:
            ValueError: `steps` is negative.
        """
        if steps < 0:
            raise ValueError(f"The shape prior needs 0 or more steps of refinement; got {steps}.")
        for _ in range(steps):
            logits = self.shape_prior.refine(logits)
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor, refine: int = 1) -> Tensor:
        """Return the label map [B, *S] of images, corrected `refine` times; in eval mode and without gradients."""
        with preserved_modes(self):
            self.eval()
            logits = self._predicted(self.model(images), images.shape[2:]).main
            return to_labels(self.refine(logits, refine))

    def explain(self, images: Tensor, labels: Tensor, *, generator: torch.Generator | None = None) -> HardExamples:
        """Make hard examples of a batch, and return every step of their making; for figures.

        Runs in eval mode, without noise. `visualize.draw_hard_examples` draws the result.

        Shape:
            images: [B, C, *S].   labels: [B, *S] or [B, 1, *S].
        """
        labels = squeeze_labels(labels, images.ndim - 2).long()
        with preserved_modes(self), torch.enable_grad(), self.eval()._tapped() as taps:
            predicted = self._predicted(self.model(images), labels.shape[1:], [*taps.codes.values()])
            logits, losses = predicted.main, Losses(self.weights)
            losses.add("segmentation", predicted.loss(self.loss, labels))
            reconstructed = self.reconstruction(taps.codes[self.image_code], images.shape[2:])
            losses.add("reconstruction", reconstruction_loss(reconstructed, images))
            image_code, shape_codes = self._masked_codes(taps, losses, generator)
            hard_images = self._hard_images(image_code, images, reconstructed, generator)
            hard_segmentation = self._replayed(taps, shape_codes, labels).main
            refined = self.shape_prior.refine(hard_segmentation).detach()
            deepest = max(shape_codes, key=lambda one: math.prod(one.location.stride))
            return HardExamples(
                *image_code.shown(), hard_images, logits.detach(), *deepest.shown(), hard_segmentation, refined
            )

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        shape_codes = ", ".join(map(str, self.shape_codes))
        shown = f"image_code={self.image_code}, shape_code={shape_codes}, image_range={self.image_range}"
        shown += f", details={self.details}"
        options = {"hard_share": self.hard_share, "hard_scale": self.hard_scale}
        return shown + "".join(f", {name}={value:g}" for name, value in options.items() if value != 1)

    def _tapped(self) -> CodeTaps:
        return CodeTaps(self.model, self.image_code, self.shape_codes)

    # The two stages ---------------------------------------------------------------------------------------------------

    def _standard_stage(
        self,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
        losses: Losses,
        *,
        make_hard: bool,
    ) -> CooperativeOutput:
        """Compute the losses on the images themselves, and make the hard examples while their graph is alive."""
        inputs = self._with_noise(images, generator) if self.training else images
        hard_images = hard_segmentation = hard_samples = None
        with self._tapped() as taps:
            predicted = self._predicted(self.model(inputs), labels.shape[1:], [*taps.codes.values()])
            logits = predicted.main
            hot = one_hot(labels, self.num_classes, ignore_index=self.ignore_index, dtype=logits.dtype)
            losses.end("shape_from_labels", self.loss(self.shape_prior(hot), labels))
            refined = self._refined(losses.start("shape_from_logits", logits))
            losses.end("shape_from_logits", self.loss(refined, labels))
            code = losses.start("reconstruction", taps.codes[self.image_code])
            reconstructed = self.reconstruction(code, images.shape[2:])
            losses.end("reconstruction", reconstruction_loss(reconstructed, images))
            losses.add("segmentation", predicted.loss(self.loss, labels))
            if make_hard:
                # Constants, so that no later stage needs the graph that they are drawn from.
                due = self.saliency_schedule is None or self.saliency_schedule()
                image_code, shape_codes = self._masked_codes(taps, losses, generator, salient=due)
                hard_samples = draw_samples(len(images), self.hard_share, images.device, generator)
                hard_images = self._hard_images(image_code, images, reconstructed, generator, hard_samples)
                hard_images = shrink(hard_images, self._hard_size(images.shape[2:]))
                learn = bool(self.weights["hard_code_segmentation"])
                replayed = self._replayed(taps, shape_codes, labels, differentiable=learn)
                if learn:
                    losses.add("hard_code_segmentation", replayed.loss(self.loss, labels))
                hard_segmentation = taken(replayed.main.detach(), hard_samples)
                hard_segmentation = shrink(hard_segmentation, self._hard_size(labels.shape[1:]))
        return _output(losses, logits, refined, hard_images, hard_segmentation, hard_samples)

    def _hard_stage(
        self,
        images: Tensor,
        labels: Tensor,
        hard_images: Tensor,
        hard_segmentation: Tensor,
        hard_samples: Tensor | None = None,
        *,
        losses: Losses,
    ) -> CooperativeOutput:
        """Compute the same losses on hard examples, without a trace in running statistics."""
        images = shrink(taken(images, hard_samples), hard_images.shape[2:])
        labels = shrink_labels(taken(labels, hard_samples), hard_segmentation.shape[2:])
        # Statistics stay frozen while losses are backpropagated here: parts that the model checkpoints run again then.
        with frozen_norm_statistics(self), constant_norm_parameters(self, self.hard_norm_frozen):
            with self._tapped() as taps:
                predicted = self._predicted(self.model(hard_images), labels.shape[1:], [*taps.codes.values()])
                logits = predicted.main
                refined = self._refined(losses.start("shape_from_hard_image", logits))
                losses.end("shape_from_hard_image", self.loss(refined, labels))
                code = losses.start("hard_image_reconstruction", taps.codes[self.image_code])
                reconstructed = self.reconstruction(code, images.shape[2:])
                losses.end("hard_image_reconstruction", reconstruction_loss(reconstructed, images))
                again = self.shape_prior.refine(hard_segmentation)
                losses.end("shape_from_hard_segmentation", self.loss(again, labels))
                losses.add("hard_image_segmentation", predicted.loss(self.loss, labels))
            return _output(losses, logits, refined, hard_images, hard_segmentation, hard_samples)

    def _masked_codes(
        self, taps: CodeTaps, losses: Losses, generator: torch.Generator | None, *, salient: bool = True
    ) -> tuple[_Masked, list[_Masked]]:
        """Draw masks for the image code and the shape codes, by their saliency or, if not `salient`, by noise."""
        masked = functools.partial(self._masked, taps, losses if salient else None, generator)
        (image_code,) = masked([self.image_code], self.image_masker, "reconstruction")
        return image_code, masked(self.shape_codes, self.shape_masker, "segmentation")

    def _masked(
        self,
        taps: CodeTaps,
        losses: Losses | None,
        generator: torch.Generator | None,
        locations: Sequence[Location],
        masker: LatentTransform,
        name: str,
    ) -> list[_Masked]:
        """Draw a mask for each of the codes at `locations`, where the loss of that name is most sensitive to them.

        Without losses, the masks fall anywhere.
        """
        codes = [taps.codes[location] for location in locations]

        @functools.cache  # for all at once, if one is asked for
        def saliencies() -> list[Tensor]:
            if losses is None:
                return [_normal_noise(code, generator).float() for code in codes]
            return losses.saliencies(name, codes)

        if is_sharded(self):  # ranks draw different masks, and a backward pass gathers weights from all ranks or hangs
            saliencies()
        masked = []
        for i, (code, location) in enumerate(zip(codes, locations, strict=True)):
            saliency = functools.partial(lambda i: saliencies()[i], i)
            mask = masker(code, saliency, layout=location.layout, generator=generator)
            masked.append(_Masked(location, code, saliency, mask))
        return masked

    def _hard_images(
        self,
        masked: _Masked,
        images: Tensor,
        reconstructed: Tensor,
        generator: torch.Generator | None,
        samples: Tensor | None = None,
    ) -> Tensor:
        """Return the images that a masked image code stands for, or those of some samples."""
        with torch.no_grad(), frozen_norm_statistics(self.reconstruction):
            code = taken(masked.mask.apply(masked.code), samples)
            decoded: Tensor = self.reconstruction(code, images.shape[2:]).to(images.dtype)
            if self.details == 0:
                return decoded
            images, reconstructed = taken(images, samples), taken(reconstructed, samples).to(images.dtype)
            one_each = (len(images), *[1] * (images.ndim - 1))
            lost = 1 - draw(self.details, one_each, images.device, generator)
            return self._in_range(images.lerp(reconstructed, lost.to(images.dtype)) + (decoded - reconstructed))

    def _hard_size(self, size: Sequence[int]) -> tuple[int, ...]:
        return scaled_size(size, self.hard_scale, coarsest([self.image_code, *self.shape_codes]).stride)

    def _replayed(
        self, taps: CodeTaps, masked: Sequence[_Masked], labels: Tensor, *, differentiable: bool = False
    ) -> Prediction:
        """Return what the model predicts from masked shape codes."""
        with torch.set_grad_enabled(differentiable):
            # A tensor spares the pass up to the code; of several codes, the later depend on the earlier.
            new: list[Tensor | Callable[[Tensor], Tensor]] = (
                [one.mask.apply(one.code) for one in masked] if len(masked) == 1 else [one.mask.apply for one in masked]
            )
            return self._predicted(taps.replay(new), labels.shape[1:])

    def _refined(self, logits: Tensor) -> Tensor:
        return self.shape_prior.refine(logits.detach() if self.separate else logits)

    # Reading and checking ---------------------------------------------------------------------------------------------

    def _with_noise(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if callable(self.input_noise):
            return self.input_noise(images, generator)
        noise = self.input_noise * _normal_noise(images, generator)
        if self.image_range is None:
            return images + noise * images.std()
        low, high = self.image_range
        return self._in_range(images + noise * (high - low))

    def _in_range(self, images: Tensor) -> Tensor:
        return images if self.image_range is None else images.clamp(*self.image_range)

    def _predicted(self, output: Any, size: Sequence[int], codes: Sequence[Tensor] = ()) -> Prediction:
        """Read the logits from what the model returned, at the size given."""
        outputs = read_logits(output, self.num_classes, len(size), self.read_logits)
        return at_size(outputs, self._main_output(outputs, codes), size)

    def _main_output(self, outputs: Sequence[Tensor], codes: Sequence[Tensor]) -> int:
        """Say which output the segmentation is: the first of the finest that all the codes have a part in.

        Networks such as UNet++ return outputs of one size of which only the last passes through the bottleneck.
        """
        candidates = finest(outputs)
        if len(candidates) > 1 and codes and len(outputs) not in self._main_outputs:
            whole = (i for i in candidates if all(depends(outputs[i], code) for code in codes))
            self._main_outputs[len(outputs)] = next(whole, candidates[0])
        return self._main_outputs.get(len(outputs), candidates[0])

    def _try(self, example: Tensor) -> None:
        """Read the logits of one pass, so that what does not fit is refused here and not in the first step."""
        with preserved_modes(self.model), sandbox(unwrap(self.model), example.device):
            self.model.eval()
            with torch.no_grad():
                outputs = read_logits(self.model(example), self.num_classes, example.ndim - 2, self.read_logits)
            if len(finest(outputs)) > 1:
                with self._tapped() as taps:
                    self._predicted(self.model(example), example.shape[2:], [*taps.codes.values()])
            self._try_size(example)

    def _try_size(self, example: Tensor) -> None:
        """See that the model takes images of the size of hard examples."""
        size = self._hard_size(example.shape[2:])
        if size == example.shape[2:]:
            return
        try:
            with torch.no_grad():
                self.model(shrink(example, size))
        except Exception as error:
            raise ValueError(
                f"CooperativeModel with hard_scale={self.hard_scale:g} needs a model that takes images of size {size}; "
                f"{type(self.model).__name__} raised {type(error).__name__}: {error} Pass another hard_scale, or 1."
            ) from error

    def _check_once(self, images: Tensor, labels: Tensor) -> None:
        """Look at the values of the first batch; looking at every one would make the host wait for the device."""
        if self._unchecked:
            check_batch(images, labels, self.num_classes, self.image_range, self.ignore_index)
        self._unchecked = False


def _output(losses: Losses, *results: Any) -> CooperativeOutput:
    """Gather what a stage returns; where its losses are backpropagated at once, after that and without a graph."""
    if not losses.eager:
        return CooperativeOutput(losses.total, losses.weighted, *results)
    losses.backward()
    return detached(CooperativeOutput(losses.total, losses.weighted, *results))


def _normal_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from N(0, 1), on the generator's device, in a tensor's shape, type and place."""
    source = like.device if generator is None else generator.device
    noise = torch.randn(like.shape, generator=generator, device=source)
    return noise.to(like.device, like.dtype, non_blocking=source.type == "cpu")
