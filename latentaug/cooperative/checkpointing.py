"""Activation checkpointing of any modules for as long as a context lasts; nothing about the model is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from latentaug.tracing.intercept import overridden
from latentaug.tracing.isolation import norm_tracking, repeated_norms
from latentaug.tracing.moving import Before


def checkpointed(modules: Mapping[str, nn.Module]) -> AbstractContextManager[None]:
    """Compute what these modules compute again in the backward pass, in place of keeping it until then.

    Only what goes into them is kept. The second computation repeats the first, random numbers and batch statistics
    included, and moves no running statistics, also where the context was left before the backward pass.

    Args:
        modules: Modules by any names, none inside another.

    References:
        Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.

    Example:
        >>> block = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU())
        >>> with checkpointed({"block": block}):
        ...     loss = block(torch.randn(3, 2)).sum()
        >>> loss.backward()
        >>> int(block[1].num_batches_tracked), block[0].weight.grad.shape
        (1, torch.Size([4, 2]))
    """

    def handle(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        tracking, before, again = norm_tracking(modules[name]), Before(modules[name]), False

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal again
            if not again:
                again = True
                return original(*args, **kwargs)
            with before.again(), repeated_norms(tracking):
                return original(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return overridden(modules, handle)
