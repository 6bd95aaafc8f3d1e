"""Which parts of a model are trained in train mode: all, but for those that the user froze."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

logger = logging.getLogger(__name__)


def put_in_train_mode(model: nn.Module, own: nn.Module) -> bool:
    """Put a model in train mode that is in eval mode as a whole, as libraries hand models over.

    Parts all of whose parameters are frozen stay as they are, and so do parts that are in eval mode within a model in
    train mode: these are the user's own choice.

    Args:
        model: The model that is trained, with all that is around the user's own.
        own: The user's own model within it.

    Returns:
        Whether it was in eval mode.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Dropout(), nn.Linear(2, 2)).eval()
        >>> put_in_train_mode(net, net)
        True
        >>> [part.training for part in net]
        [False, True, True]
    """
    whole = model if not model.training else own
    if whole.training:
        return False
    # What is around a model in train mode may be in eval mode as a whole: its own parts then are as they should be.
    kept = [(part, part.training) for part in (own.modules() if own.training else _frozen(own))]
    whole.train()
    for part, mode in kept:
        if part.training != mode:
            part.train(mode)
    return True


def in_eval_mode(model: nn.Module, name: str = "") -> Iterator[str]:
    """Name the parts of a model that are in eval mode, the outermost of each.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Dropout()).eval())
        >>> list(in_eval_mode(net))
        ['1']
    """
    if not model.training:
        yield name or type(model).__name__
        return
    for child, module in model.named_children():
        yield from in_eval_mode(module, f"{name}.{child}" if name else child)


def tell_of_modes(model: nn.Module, put: bool) -> None:
    """Say in which modes a model is trained, where that is not what it looked like, or not what it looks like."""
    staying = list(in_eval_mode(model))
    parts = f"{', '.join(staying[:5])}{', …' if len(staying) > 5 else ''}"
    if put:
        logger.warning(
            "The model came in eval mode, and is trained in train mode%s. Afterwards its modes are as they were.",
            f", but for its frozen parts: {parts}" if staying else "",
        )
    elif staying:
        logger.warning("These parts are in eval mode, and are trained so: %s. Call .train() on them otherwise.", parts)


def _frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost parts that have parameters, none of which is trained."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield module
    else:
        for child in module.children():
            yield from _frozen(child)
