"""States as plain data: what a checkpoint can hold and give back without running code."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ARRAY = "numpy array"
"""The only key of what stands for an array, whose value is a tensor."""

_AS_THEY_ARE = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


class NotPlainError(TypeError):
    """A state holds what a checkpoint can't give back."""


def plain(value: Any, where: str) -> Any:
    """Return tensors and plain data for a state: NumPy's numbers become Python's, its arrays tensors.

    Args:
        value: The state, nested in whatever way.
        where: What to call it.

    Raises:
        NotPlainError: It holds something else; the message says where.

    Example:
        >>> plain({"lr": np.float64(0.5), "table": np.arange(2)}, "scheduler")
        {'lr': 0.5, 'table': {'numpy array': tensor([0, 1])}}
    """
    if isinstance(value, np.generic):
        return plain(value.item(), where)
    if isinstance(value, np.ndarray):
        return {_ARRAY: _as_tensor(value, where)}
    if isinstance(value, Tensor):
        if hasattr(value, "full_tensor"):
            raise NotPlainError(f"{where} can't be kept in a checkpoint: it is a part of a distributed tensor.")
        return plain_tensor(value)
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, dict):
        items = {_key(key, where): plain(one, f"{where}[{key!r}]") for key, one in value.items()}
        return like(value, items)
    if type(value) in (list, tuple, set):
        return type(value)(plain(one, f"{where}[{index}]") for index, one in enumerate(value))
    raise NotPlainError(
        f"{where} can't be kept in a checkpoint: it holds {_shown(value)}. States may hold tensors, numbers, texts, "
        "and lists and dictionaries of them."
    )


def plain_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor of a library's own kind, such as MONAI's `MetaTensor`, as PyTorch's; a sharded one as it is.

    Example:
        >>> class Own(torch.Tensor): pass
        >>> plain_tensor(torch.ones(2).as_subclass(Own))
        tensor([1., 1.])
    """
    known = type(tensor) in (Tensor, nn.Parameter) or hasattr(tensor, "full_tensor")  # sharded ones have that
    return tensor if known else tensor.detach().as_subclass(Tensor)


def restored(value: Any) -> Any:
    """Return what `plain` was given, with its arrays."""
    if isinstance(value, dict):
        if value.keys() == {_ARRAY} and isinstance(value[_ARRAY], Tensor):
            return value[_ARRAY].numpy()
        return like(value, {key: restored(one) for key, one in value.items()})
    if type(value) in (list, tuple):
        return type(value)(restored(one) for one in value)
    return value


def without_code(state: Any) -> Any:
    """Leave functions and methods out of a state: they come from the object that the state is loaded into.

    Example:
        >>> without_code({"last_epoch": 3, "shape": abs, "inner": [{"shape": abs}]})
        {'last_epoch': 3, 'inner': [{}]}
    """
    if isinstance(state, dict):
        return like(state, {key: without_code(value) for key, value in state.items() if not _is_code(value)})
    return [without_code(value) for value in state] if type(state) is list else state


def like(given: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """Return items in a dictionary of the same kind, if it is one that checkpoints know."""
    if type(given) not in (collections.Counter, collections.OrderedDict):
        return items
    made = type(given)(items)
    vars(made).update(vars(given))  # a module's state has the versions of its parts there
    return made


def _is_code(value: Any) -> bool:
    return isinstance(value, Callable) and not isinstance(value, Tensor | torch.dtype)  # type: ignore[arg-type]


def _key(key: Any, where: str) -> Any:
    if isinstance(key, np.generic):
        return key.item()
    if type(key) in (bool, int, float, str, bytes, tuple, type(None)):
        return key
    raise NotPlainError(f"{where} can't be kept in a checkpoint: it has {_shown(key)} for a key.")


def _as_tensor(array: Any, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise NotPlainError(f"{where} can't be kept in a checkpoint: it holds an array of {array.dtype}.") from error


def _shown(value: Any) -> str:
    name = type(value).__qualname__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
