"""Let transforms sample changes of the codes of a captured pass: with its saliency, and the losses of its replays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeGuard

import torch
from torch import Tensor

from latentaug.divergence import kl_divergence
from latentaug.layout import Layout
from latentaug.saliency import latent_saliency
from latentaug.tap.capture import Capture
from latentaug.tap.sampling import Divergence, New, Objective, Sampler

_NAMES = ("out", "logits")  # in torchvision's models and in those of transformers


class Drawing:
    """What transforms are given to sample from, for one captured pass.

    Args:
        capture: The pass.
        layouts: Returns those of its codes, where a transform asks for one.
        ours: Returns a context for passes that are not the user's.
        objective: The loss of what the model returns.
        divergence: How far what it returns is from what it returned.
        generator: Source of the random numbers.
    """

    def __init__(
        self,
        capture: Capture,
        layouts: Callable[[], Sequence[Layout]],
        ours: Callable[[], AbstractContextManager[Any]],
        objective: Objective | None,
        divergence: Divergence | None,
        generator: torch.Generator | None,
    ) -> None:
        self._capture = capture
        self._find_layouts = layouts
        self._ours = ours
        self._objective = objective
        self._divergence = divergence or output_divergence
        self._generator = generator

    def each(self, given: Sequence[New]) -> list[Any]:
        """Let every transform among these sample a change of the code in its place."""
        return [self._one(place, one) if is_sampler(one) else one for place, one in enumerate(given)]

    def same(self, transform: Sampler) -> list[Any]:
        """Let a transform sample a change of the first code, and take it for all of them."""
        change = self._one(0, transform)
        changes = [change.on(layout) for layout in self._layouts]
        for change, code in zip(changes[1:], self._capture.codes[1:], strict=True):
            try:
                with torch.no_grad():
                    change.apply(code)
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"LatentTap.draw with same=True needs a transform whose parameters fit every code; those of "
                    f"{type(transform).__name__} do not fit {tuple(code.shape)}: {error}"
                ) from error
        return changes

    def together(self, transform: Any) -> list[Any]:
        """Let an adversarial transform climb over all codes at once."""
        self._see_objective(transform, {"loss_at"})

        def loss_at(changes: Sequence[Any]) -> Tensor:
            return self._climb(lambda output: self._loss(output), [None if c.is_identity else c for c in changes])

        changes: list[Any] = transform.draw_together(
            [code.detach() for code in self._capture.codes],
            loss_at,
            layouts=self._layouts,
            generator=self._generator,
        )
        return changes

    def _one(self, place: int, transform: Sampler) -> Any:
        self._see_objective(transform, {"saliency", "loss_at"} & {*transform.needs})
        nothing = [None] * len(self._capture.codes)

        def new(code: Tensor) -> list[New]:
            return [*nothing[:place], code, *nothing[place + 1 :]]

        asked: dict[str, Any] = {
            "divergence_at": lambda code: self._climb(
                lambda output: self._divergence(output, self._capture.output), new(code)
            )
        }
        saliency = None
        if self._objective is not None:
            asked["loss_at"] = lambda code: self._climb(self._loss, new(code))
            saliency = functools.partial(lambda i: self._saliencies[i], place)
        layout = Layout() if getattr(transform, "any_layout", False) else self._layouts[place]
        return transform(self._capture.codes[place], saliency, layout=layout, generator=self._generator, **asked)

    @functools.cached_property
    def _layouts(self) -> Sequence[Layout]:
        return self._find_layouts()

    @functools.cached_property  # for all layers at once, if one is asked for
    def _saliencies(self) -> list[Tensor]:
        with torch.enable_grad():
            return latent_saliency(self._loss(self._capture.output), self._capture.codes)

    def _climb(self, measure: Callable[[Any], Tensor], new: Sequence[New]) -> Tensor:
        """Measure what a replay returns, differentiably with respect to what is new in it."""
        with self._ours(), torch.enable_grad():
            return measure(self._capture.replay(new, detach=True))

    def _loss(self, output: Any) -> Tensor:
        assert self._objective is not None
        return self._objective(output)

    def _see_objective(self, transform: Sampler, needs: set[str]) -> None:
        if self._objective is None and needs:
            raise ValueError(
                f"LatentTap needs `objective` for {type(transform).__name__}, which asks for the {max(needs)}; got "
                "None. Pass objective=lambda output: criterion(output, labels)."
            )


def output_divergence(output: Any, clean: Any) -> Tensor:
    """Return the divergence of the segmentation in what a model returns from that in what it returned.

    Raises:
        TypeError: It is not clear which of what it returns are the logits.
    """
    return kl_divergence(_logits(output), _logits(clean))


def _logits(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        named = [output.get(name) if isinstance(output, Mapping) else getattr(output, name, None) for name in _NAMES]
        parts = [one for one in named if one is not None]
        if not parts and isinstance(output, list | tuple) and output:
            parts = [output[0]]  # under deep supervision the first is the finest
        if not parts:
            raise TypeError(
                f"LatentTap finds no logits in what the model returns, a {type(output).__name__}. Pass divergence=, a "
                "callable (output, clean output) -> scalar."
            )
        output = parts[0]
    return output


def is_sampler(one: object) -> TypeGuard[Sampler]:
    """Tell whether something is a transform."""
    return isinstance(one, Sampler) and not isinstance(one, type)
