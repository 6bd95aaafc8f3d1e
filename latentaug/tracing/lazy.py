"""Lazy modules: they make their weights in their first pass."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from latentaug.tracing.isolation import preserved_modes
from latentaug.tracing.tree import map_tensors


def initialise(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let lazy modules make their weights, from the random stream that the model's first pass would take them from.

    Args:
        model: Any; one without lazy modules is not called.
        args: What it is called with; it gets copies.
        kwargs: The same, by name.

    Example:
        >>> model = nn.LazyConv2d(4, 1)
        >>> initialise(model, (torch.rand(1, 2, 3, 3),), {})
        >>> model.weight.shape
        torch.Size([4, 2, 1, 1])
    """
    if any(map(is_lazy, chain(model.parameters(), model.buffers()))):
        with preserved_modes(model), torch.inference_mode(False), torch.no_grad():
            model.eval()  # where nothing else is drawn, and no statistics move
            args, kwargs = map_tensors((args, kwargs), torch.clone)
            model(*args, **kwargs)
