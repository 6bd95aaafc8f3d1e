"""PyTorch's fast path through transformer encoders, which calls none of the modules inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

_TAKES_IT = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@contextmanager
def modules_are_called(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """See that named modules are called.

    In eval mode and without gradients, a transformer encoder's layer is computed as a whole, unless a module inside has
    hooks. So each of the named modules that are inside one gets a hook that does nothing, within the context.
    """
    with ExitStack() as stack:
        for name in names:
            if _is_inside(model, name):
                stack.callback(model.get_submodule(name).register_forward_hook(_nothing).remove)
        yield


@contextmanager
def without_fast_path() -> Iterator[None]:
    """See that no transformer encoder is computed as a whole, as it would be where weights are constants.

    Example:
        >>> with without_fast_path():
        ...     torch.backends.mha.get_fastpath_enabled()
        False
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _nothing(*_: object) -> None:
    pass


def _is_inside(model: nn.Module, name: str) -> bool:
    for part in name.split(".")[:-1]:
        model = getattr(model, part)
        if isinstance(model, _TAKES_IT):
            return True
    return False
