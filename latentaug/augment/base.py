"""What all transforms of latent codes are: drawn once, applied as often as need be, in any layout."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from latentaug.augment.change import Change, for_nobody, unpacked
from latentaug.augment.context import Context
from latentaug.augment.ranges import Range, as_range, draw, source_of, value_of
from latentaug.augment.schedule import advance
from latentaug.checks import random_source, shown, tensor
from latentaug.layout import CHANNELS_FIRST, Layout

__all__ = ["Change", "Context", "Criterion", "LatentTransform", "LossAt", "Saliency"]

Saliency: TypeAlias = Tensor | Callable[[], Tensor]
"""The saliency itself, or what computes it for a transform that asks."""

LossAt: TypeAlias = Callable[[Any], Tensor]
"""The loss of what a model makes of a code, as a function of the code."""

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A loss of logits and labels."""


class LatentTransform(nn.Module):
    """Change a latent code: the base of all transforms.

    A transform samples its parameters once (`make_params`) and then makes the same change as often as need be
    (`transform`). It knows no model and has no weights, so that it prints, nests, copies and moves as any module does.
    Both methods see the code as [B, C, *S], whatever its layout. In eval mode a transform leaves the code alone.

    Args:
        p: Chance that the transform acts, in [0, 1]; a pair is sampled from uniformly.
        per_sample: Whether that is sampled for each sample, or once for the batch.

    Samples:
        Whether to act, and then what `make_params` samples; all from `generator`, on its device.

    Example:
        >>> class Darken(LatentTransform):
        ...     def make_params(self, code, context):
        ...         return {"factor": context.rand(len(code))}
        ...     def transform(self, code, factor):
        ...         return code * factor.view(-1, *[1] * (code.ndim - 1)).to(code.dtype)
        >>> change = Darken()(torch.ones(2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
        >>> change.params["factor"].shape, bool((change(torch.ones(2, 3, 4, 4)) <= 1).all())
        (torch.Size([2]), True)
    """

    needs: tuple[str, ...] = ()
    """What it asks its context for and a single forward pass cannot give: "saliency", "loss_at", "divergence_at"."""
    needs_partner: bool = False
    """Whether samples of a batch are combined, so that a batch of one stays as it is."""
    whole_pass: bool = False
    """Whether a replay changes everything that was computed before the code and is read after it, as mixing must. Such
    a transform sees the code as it is, in its own layout."""
    acts_in_eval: bool = False
    """Whether it acts in eval mode too."""
    gated: bool = True
    """Whether `p` is the chance that it acts."""
    is_mask: bool = False
    """Whether its changes are masks, which multiply the code."""
    place: str = "bottleneck"
    """Where its paper puts it, as `suggest_layers` reads it: "image"; in the encoder "input or early" (one of them),
    "first", "early" (two stages), "encoder" (all stages), "deep" (the last two), "bottleneck"; or "late decoder"."""

    def __init__(self, *, p: Range = 1.0, per_sample: bool = False) -> None:
        super().__init__()
        self.p = as_range("p", p)
        if per_sample and type(self).loss is not LatentTransform.loss:
            raise ValueError(f"{type(self).__name__} mixes labels, and so acts on a whole batch; got per_sample=True.")
        self.per_sample = per_sample
        self._has_warned = False

    @property
    def any_layout(self) -> bool:
        """Whether it makes no difference to it which axis holds the channels."""
        return self.whole_pass

    # To be written by each transform ------------------------------------------------------------------------------

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample what the change consists of, for a code [B, C, *S] that must not be changed."""
        raise NotImplementedError(f"{type(self).__name__} needs a method make_params(code, context) -> dict.")

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Return the changed code [B, C, *S]; the same each time, and differentiable."""
        raise NotImplementedError(f"{type(self).__name__} needs a method transform(code, **params) -> Tensor.")

    def loss(self, criterion: Criterion, logits: Tensor, labels: Tensor, **params: Any) -> Tensor:
        """Return the loss of what a model makes of the changed code; only where labels mix it isn't the criterion's."""
        return criterion(logits, labels)

    # For those who use it -----------------------------------------------------------------------------------------

    def forward(
        self,
        code: Tensor,
        saliency: Saliency | Context | None = None,
        *,
        layout: Layout = CHANNELS_FIRST,
        generator: torch.Generator | None = None,
        loss_at: LossAt | None = None,
        labels: Tensor | None = None,
        divergence_at: LossAt | None = None,
        training: bool | None = None,
    ) -> Change:
        """Sample a change of this code.

        Args:
            code: The latent code, of any floating dtype; neither changed nor differentiated through.
            saliency: Gradient of a task loss with respect to the code, shaped like it; or a callable without arguments
                that returns it, called at most once and only if this transform asks for it. Transforms made of
                transforms pass their own context on.
            layout: Where the channels are in `code` and `saliency`, and which tokens are no spatial positions.
            generator: Source of the random numbers, which are made on its device and then moved to the code's. Default:
                PyTorch's global CPU generator, on any device, so that a seed means the same on each.
            loss_at: Returns the loss for another code, in the code's own layout; what adversarial transforms climb.
            labels: Labels of the batch, for transforms that ask for them.
            divergence_at: Returns how far the prediction for another code is from that for this one.
            training: Whether to act as in train mode. Default: as the transform's own flag says.

        Shape:
            code, saliency: [B, C, *S] (any layout given by `layout`).

        Raises:
            TypeError: The code is not floating-point.
            ValueError: The code does not fit the layout; or something that is asked for is missing or misshapen.
        """
        tensor("code", code, who=type(self).__name__)
        random_source(generator)
        if not isinstance(layout, Layout):
            raise TypeError(f"layout must be a Layout, such as latentaug.TOKENS; got {shown(layout)}.")
        seen = code.detach() if self.any_layout else layout.to_channels_first(code.detach())
        if not seen.ndim:
            raise ValueError(f"{type(self).__name__} needs a code [B, …]; got shape ().")
        if isinstance(saliency, Context):
            context = saliency
        else:
            given = {"saliency": saliency, "loss_at": loss_at, "divergence_at": divergence_at, "labels": labels}
            context = Context(type(self).__name__, seen, code, layout, generator, given, training)
        if not self._acts(seen, context):
            return self.unchanged(code, layout)
        gate = self._gate(len(seen), context)
        if gate is not None and gate.is_cpu and not gate.any():
            return self.unchanged(code, layout)
        return self.changed(code, layout, self.make_params(seen, context), gate)

    def changed(self, code: Tensor, layout: Layout, params: dict[str, Any], gate: Tensor | None) -> Change:
        """Wrap sampled parameters."""
        return Change(self, params, layout=layout, gate=gate)

    def unchanged(self, code: Tensor, layout: Layout) -> Change:
        """Return the change that changes nothing."""
        return Change(self, {}, layout=layout, gate=for_nobody())

    def augment(self, images: Tensor, *, generator: torch.Generator | None = None, batched: bool = True) -> Tensor:
        """Sample a change of images and apply it, in one go: a batch of images is a code with few channels.

        Args:
            images: A batch of images; or a single one.
            generator: Source of the random numbers, as for a call.
            batched: Whether there is a batch axis. The shape alone doesn't tell [B, C, L] from [C, H, W].

        Shape:
            images: [B, C, *S], or [C, *S] with `batched=False`.   output: the same.

        Raises:
            TypeError: The images are no floating-point tensor.
            ValueError: They have too few axes.

        Example:
            >>> from latentaug import GIN
            >>> GIN().augment(torch.rand(1, 32, 32), batched=False).shape
            torch.Size([1, 32, 32])
        """
        tensor("images", images, who=type(self).__name__)
        if images.ndim < 2 + batched:
            axes = "[B, C, *S]" if batched else "[C, *S]"
            raise ValueError(f"{type(self).__name__} needs images {axes}; got shape {tuple(images.shape)}.")
        if not batched:
            return self.augment(images.unsqueeze(0), generator=generator).squeeze(0)
        change: Change = self(images, generator=generator)
        return change.apply(images)

    def extra_repr(self) -> str:
        """Show the arguments that differ from their defaults."""
        parameters = inspect.signature(type(self).__init__).parameters.values()
        options = [(p, getattr(self, p.name)) for p in parameters if p.default is not p.empty and hasattr(self, p.name)]
        options = [(p, value) for p, value in options if not isinstance(value, nn.Module)]  # printed as a child
        return ", ".join(f"{p.name}={value!r}" for p, value in options if value != p.default)

    def step(self) -> None:
        """Advance every `Schedule` within by one iteration; for loops of your own."""
        advance(self)

    def change_from(self, state: Mapping[str, Any]) -> Change:
        """Return the change whose `state_dict` this is, to make it again on another pass, or another day.

        Args:
            state: What `Change.state_dict` returned, of a change that was sampled by a transform like this one, or by
                one that this one is made of.

        Raises:
            TypeError: It is no such state.
            ValueError: It was sampled by another transform.

        Example:
            >>> from latentaug import MixStyle
            >>> code = torch.randn(4, 8, 6, 6)
            >>> change = MixStyle(p=1)(code)
            >>> again = MixStyle(p=1).change_from(change.state_dict())
            >>> torch.equal(again.apply(code), change.apply(code))
            True
        """
        if not isinstance(state, Mapping) or not {"transform", "params", "layout", "gate"} <= state.keys():
            raise TypeError(f"change_from needs what Change.state_dict() returned; got {shown(state)}.")
        for one in self.modules():
            if isinstance(one, LatentTransform) and repr(one) == state["transform"]:
                return one.restored(state)
        raise ValueError(f"change_from needs a change sampled by {self!r}; got one by {state['transform']}.")

    def restored(self, state: Mapping[str, Any]) -> Change:
        """Make a change of its own from a state."""
        return Change(self, unpacked(state["params"], self), layout=Layout(*state["layout"]), gate=state["gate"])

    def _acts(self, code: Tensor, context: Context) -> bool:
        training = self.training if context.training is None else context.training
        if (not training and not self.acts_in_eval) or (not len(code) and not self.is_mask):
            return False
        if not self.needs_partner or len(code) != 1:
            return True
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{type(self).__name__} combines the samples of a batch, and leaves a batch of one as it is. Pass "
                "larger batches.",
                stacklevel=3,
            )
        return False

    def _gate(self, batch: int, context: Context) -> Tensor | None:
        """Sample for whom the transform acts, on the generator's device; None for everybody."""
        if not self.gated or value_of(self.p) == 1:
            return None
        source = source_of(context.generator)
        p = draw(self.p, (), source, context.generator)
        gate = draw((0.0, 1.0), (batch,) if self.per_sample else (), source, context.generator) < p
        if gate.is_cpu and not self.per_sample:  # known to Python already: nothing is computed for nothing
            return None if gate.any() else gate
        return gate if gate.is_cpu and not gate.any() else gate.to(context.device, non_blocking=gate.is_cpu)


def mixes_labels(transform: LatentTransform) -> str | None:
    """Name the transform that mixes labels, of one and those that it is made of; None if there is none.

    Example:
        >>> from latentaug import Compose, DropBlock, MoEx
        >>> mixes_labels(Compose([DropBlock(), MoEx()])), mixes_labels(MoEx(labels="keep"))
        ('MoEx', None)
    """
    for one in transform.modules():
        made_of_others = any(isinstance(child, nn.ModuleList) for child in one.children())
        mixes = isinstance(one, LatentTransform) and type(one).loss is not LatentTransform.loss
        if mixes and not made_of_others and getattr(one, "labels", "mix") != "keep":
            return type(one).__name__
    return None
