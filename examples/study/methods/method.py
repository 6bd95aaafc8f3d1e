"""A method: how it trains, everything else being equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from latentaug import (
    CooperativeModel,
    CooperativeOutput,
    HardExamples,
    LatentTransform,
    augmented,
    standard_backward,
)
from study.data.frame import DataError
from study.methods.network import HEADS

Step: TypeAlias = Callable[..., CooperativeOutput]
"""Fills the gradients from a batch, as `cooperative_backward` does."""
Transform: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


NOISE = 0.05
"""Standard deviation of the noise on training images, of every method."""
PAPER = HardExamples(noise=NOISE, separate=False, separate_decoder=False, every=1)
"""How hard examples are made in the paper, of networks that are not the paper's too."""


@dataclass(frozen=True)
class Method:
    """One method, trained from the same weights, on the same batches, for as many iterations as any other.

    Args:
        title: What it does, for the reader of the table.
        reference: Whom it is from; empty for Chen et al., MICCAI 2021, and for what varies that.
        step: Fills the gradients from a batch.
        options: Arguments of `CooperativeModel` that are not its defaults.
        transform: Changes the images of a batch before the step.
        latent: Transforms of codes, by the names of the network's layers that return the changed codes in the step.
        ramp: Fraction of the training over which the weights of the losses on hard examples rise from 0.
        start: Fraction of the training after which there are hard examples.
        heads: Whether an image decoder and a shape prior stand beside the network, as in the paper.
        reconstructs: Whether the image decoder is trained, without which there are no hard images.
        refines: Whether the shape prior is trained.
        prepare: Sets what `CooperativeModel` can only be told once it is made.
    """

    title: str
    reference: str = ""
    step: Step = standard_backward
    options: Mapping[str, Any] = field(default_factory=dict)
    transform: Transform | None = None
    latent: Mapping[str, LatentTransform] = field(default_factory=dict)
    ramp: float = 0.0
    start: float = 0.0
    heads: bool = True
    reconstructs: bool = True
    refines: bool = True
    prepare: Callable[[CooperativeModel], None] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `CooperativeModel`: the options, with what the paper has beside them if need be."""
        given = self.options.get("hard", HardExamples())
        if not self.heads:
            return {**self.options, "hard": replace(given, noise=NOISE)}
        fixed = {one.name: getattr(given, one.name) for one in fields(given) if getattr(given, one.name) != one.default}
        return {**HEADS, **self.options, "hard": replace(PAPER, **fixed)}

    def backward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        scaler: torch.amp.GradScaler | None = None,
        generator: torch.Generator | None = None,
    ) -> CooperativeOutput:
        """Fill the gradients from a batch, as `cooperative_backward` does."""
        if self.transform is not None:
            images = self.transform(images, generator or torch.default_generator)
        with self._changed_codes(model, generator) as run:
            mixed = {} if run is None else {"mixed": run.loss}
            return self.step(model, images, labels, scaler=scaler, generator=generator, **mixed)

    def see_that_it_fits(self, name: str, model: CooperativeModel) -> None:
        """Refuse a network without the layers whose codes are changed.

        Raises:
            DataError: there is no such layer.
        """
        try:
            self._changed_codes(model, None)
        except ValueError:
            network, layers = type(model.model).__name__, ", ".join(self.latent)
            raise DataError(
                f"--methods {name} changes codes of {layers}, which {network} lacks. Leave it out, or pass --model "
                "smp:Unet:resnet18, or another with a ResNet encoder."
            ) from None

    def _changed_codes(self, model: nn.Module, generator: torch.Generator | None) -> AbstractContextManager[Any]:
        if not self.latent:
            return nullcontext()
        assert isinstance(model, CooperativeModel)
        return augmented(model.model, dict(self.latent.items()), generator=generator)

    @property
    def untrained(self) -> tuple[str, ...]:
        """Words in the names of logged numbers that come from heads which it leaves untrained."""
        decoder = () if self.reconstructs else ("reconstruction",)
        prior = () if self.refines else ("refined", "shape")
        return (*decoder, *prior)

    def describe(self, name: str) -> str:
        """Say in a line what the method is that the table calls `name`."""
        return f"{name}: {self.title}{f' ({self.reference})' if self.reference else ''}."


def off(*losses: str) -> dict[str, Any]:
    """Return the options that switch losses off."""
    return {"weights": dict.fromkeys(losses, 0.0)}
