"""What a transform may ask for while it samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.ranges import Range, draw, from_stream, log_odds_of_beta, source_of
from latentaug.checks import scalar
from latentaug.layout import Layout


class Context:
    """What a transform may ask for while it samples: each computed at most once, and only if it is asked for.

    Everything is as the transform sees the code, [B, C, *S], and on the code's device. Random numbers are float32
    whatever the code's dtype.

    Args:
        asked_by: What errors call the transform that asks: the outermost, which the caller knows.
        shown: The code as [B, C, *S].
        code: The code as it was given.
        layout: Its layout.
        generator: Source of the random numbers.
        given: What the caller gave, by the names of the methods.
        training: Whether transforms act as in train mode; None lets each follow its own flag.

    Example:
        >>> from latentaug import LatentTransform
        >>> class Louder(LatentTransform):
        ...     def make_params(self, code, context):
        ...         return {"factor": context.uniform((1.0, 2.0), len(code), 1, 1, 1)}
        ...     def transform(self, code, factor):
        ...         return code * factor
        >>> louder = Louder()(torch.ones(2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
        >>> bool((louder(torch.ones(2, 3, 4, 4)) >= 1).all()), louder.params["factor"].shape
        (True, torch.Size([2, 1, 1, 1]))
    """

    def __init__(
        self,
        asked_by: str,
        shown: Tensor,
        code: Tensor,
        layout: Layout,
        generator: torch.Generator | None,
        given: Mapping[str, Any],
        training: bool | None = None,
    ) -> None:
        self.generator = generator
        self.device = shown.device
        self.training = training
        self.asked_by = asked_by
        self._shape = code.shape
        self._code = code
        self._layout = layout
        self._given = given
        self._saliency: Tensor | None = None

    # What the caller knows ----------------------------------------------------------------------------------------

    def saliency(self) -> Tensor:
        """Return the gradient of the task loss with respect to the code.

        Raises:
            ValueError: None was given, or it is not shaped like the code.
        """
        if self._saliency is None:
            source = self._given.get("saliency")
            given = source() if callable(source) else source
            self._saliency = self._layout.to_channels_first(self._checked(given).detach())
        return self._saliency

    def loss_at(self, code: Tensor) -> Tensor:
        """Return the task loss of what the model makes of another code; differentiable with respect to it.

        Raises:
            ValueError: It was not given.
        """
        return self._at("loss_at", "the loss for a code", code)

    def divergence_at(self, code: Tensor) -> Tensor:
        """Return the divergence of the prediction for another code from that for this one.

        Raises:
            ValueError: It was not given.
        """
        return self._at("divergence_at", "the divergence for a code", code)

    @property
    def labels(self) -> Tensor:
        """The labels of the batch.

        Raises:
            ValueError: None were given.
        """
        labels: Tensor | None = self._given.get("labels")
        if labels is None:
            raise ValueError(
                f"{self.asked_by} needs `labels`; got None. Pass labels= where you call the transform: taps and "
                "`augmented`, which call it themselves, have none to hand on."
            )
        return labels

    # Random numbers -----------------------------------------------------------------------------------------------

    def rand(self, *shape: int) -> Tensor:
        """Sample from U(0, 1)."""
        return self.uniform((0.0, 1.0), *shape)

    def uniform(self, value: Range, *shape: int) -> Tensor:
        """Sample from a pair (low, high) uniformly; a number stays itself, in that shape."""
        return draw(value, shape, self.device, self.generator).expand(shape)

    def randn(self, *shape: int) -> Tensor:
        """Sample from N(0, 1)."""
        source = source_of(self.generator)
        return self._moved(torch.randn(shape, device=source, **from_stream(self.generator)))

    def permutation(self, n: int) -> Tensor:
        """Sample an order of n samples."""
        return self._moved(torch.randperm(n, device=source_of(self.generator), **from_stream(self.generator)))

    def beta(self, a: float, b: float, *shape: int) -> Tensor:
        """Sample from Beta(a, b)."""
        return self._moved(log_odds_of_beta(a, b, shape, self.generator).sigmoid().float())

    def choice(self, weights: Sequence[float]) -> int:
        """Sample a position by weights of any sum.

        It becomes a Python number: with a generator on a GPU that makes the host wait for it, with none or one on the
        CPU it does not.
        """
        chances = torch.tensor(weights, dtype=torch.float64, device=source_of(self.generator))
        return int(torch.multinomial(chances, 1, generator=self.generator))

    def _moved(self, sampled: Tensor) -> Tensor:
        # Without blocking only towards a GPU: a copy from it could be read before it has arrived.
        return sampled.to(self.device, non_blocking=sampled.is_cpu)

    def _at(self, name: str, what: str, code: Tensor) -> Tensor:
        function = self._given.get(name)
        if function is None:
            raise ValueError(
                f"{self.asked_by} needs `{name}`, a callable that returns {what}; got None. Pass it, or let "
                "LatentTap.draw(transform, objective=...) make it by replays."
            )
        return scalar(name, function(self._layout.put_back(code, self._code)), who=self.asked_by)

    def _checked(self, given: object) -> Tensor:
        if not isinstance(given, Tensor):
            came = "None" if given is None else type(given).__name__
        elif given.shape != self._shape:
            came = str(tuple(given.shape))
        else:
            return given
        raise ValueError(
            f"{self.asked_by} needs `saliency` shaped like the code {tuple(self._shape)}; got {came}. "
            "Pass latent_saliency(loss, code), or use RandomChannelMask."
        )
