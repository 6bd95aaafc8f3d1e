"""An exponential moving average of the weights, which is evaluated and kept in the place of the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from latentaug.checks import number
from latentaug.tracing.keeping import local, scatter
from latentaug.training.checkpoint import check_same
from latentaug.training.sharding import part_of


class Average:
    """Average the parameters of a model over the updates of its weights.

    It begins with the weights after the first update. Buffers are not averaged: whoever evaluates the average uses the
    model itself, with its statistics, while `weights` puts the averaged parameters in.

    Args:
        decay: Part of the average that an update leaves, in [0, 1).

    Raises:
        ValueError: `decay` is out of range.

    References:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; `torch.optim.swa_utils`.

    Example:
        >>> model, average = nn.Linear(1, 1), Average(0.75)
        >>> for value in (0.0, 4.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     average.update(model)
        >>> with average.weights(model):
        ...     model.weight.item()
        1.0
        >>> model.weight.item()
        4.0
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= number("ema", decay) < 1:
            raise ValueError(f"ema must be in [0, 1), the part that an update leaves; got {decay}. 0.999 is usual.")
        self.decay = float(decay)
        self._values: dict[str, Tensor] = {}
        make: Any = get_ema_multi_avg_fn  # which has no types
        self._blend = make(self.decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of a model into the average, without waiting for the device."""
        scatter(model)
        if not self._values:
            self._values = {name: one.detach().clone() for name, one in model.named_parameters()}
            return
        kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for name, one in model.named_parameters():
            average, now = local(self._values[name]), local(one.detach())
            if not (one.is_floating_point() or one.is_complex()):
                average.copy_(now)  # between whole numbers there is no mean
                continue
            held, current = kinds.setdefault((one.dtype, one.device), ([], []))
            held.append(average)
            current.append(now)
        for held, current in kinds.values():
            self._blend(held, current, 0)  # the number of updates doesn't enter

    def begin_anew(self) -> None:
        """Forget the average; it begins with the weights after the next update."""
        self._values = {}

    @contextmanager
    def weights(self, model: nn.Module) -> Iterator[None]:
        """Put the average in the place of a model's weights for as long as a context lasts."""
        scatter(model)
        own = {name: one.detach().clone() for name, one in model.named_parameters()} if self._values else {}
        try:
            _put(model, self._values)
            yield
        finally:
            scatter(model)
            _put(model, own)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, by the names of the parameters; empty before the first update."""
        return dict(self._values)

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module, source: str) -> None:
        """Load what `state_dict` returned, to where the model's parameters are.

        Raises:
            ValueError: It is not of this model; nothing is loaded then.
        """
        parameters = dict(model.named_parameters())
        if state:
            check_same(parameters, state, f"The average in {source}", model)
        own = {name: part_of(value, parameters[name]) for name, value in state.items()}
        self._values = {name: torch.empty_like(parameters[name]).copy_(value) for name, value in own.items()}


@torch.no_grad()
def _put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    if values:
        for name, one in model.named_parameters():
            one.copy_(values[name])
