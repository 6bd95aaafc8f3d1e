"""All that a model keeps, by value: weights, gradients, buffers, modes, and what its modules hold beside."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SLOTS = ("_parameters", "_buffers")
_SKIPPED = {
    "forward",
    "__reduce_ex__",
    "_compiled_call_impl",
    "_modules",
    *_SLOTS,
    *(key for key in vars(nn.Module()) if key != "training"),
}


def belongings(model: nn.Module) -> dict[str, Any]:
    """Return the values of all that a model keeps, by names that lead to it."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for slots in _SLOTS:
            for key, tensor in getattr(module, slots).items():
                found[f"{path}.{key}"] = _value(tensor, set())
                if isinstance(tensor, nn.Parameter):
                    found[f"{path}.{key}.grad"] = _value(tensor.grad, set())
        for key, value in vars(module).items():
            if key not in _SKIPPED:
                found[f"{path}.{key}"] = _value(value, set())
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Name what is not the same in two lists of belongings."""
    keys = [*expected, *(key for key in found if key not in expected)]
    return [key for key in keys if key not in found or key not in expected or not alike(found[key], expected[key])]


def _value(value: Any, seen: set[int]) -> Any:
    if isinstance(value, Tensor):
        wants = isinstance(value, nn.Parameter) and value.requires_grad  # codes of a frozen part get gradients
        return value.detach().clone(), wants, value.dtype
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype):
        return value
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value.copy())
    if isinstance(value, nn.Module) or callable(value) or id(value) in seen:
        return type(value).__qualname__
    seen.add(id(value))
    if isinstance(value, dict):
        return [(repr(key), _value(part, seen)) for key, part in value.items()]
    if isinstance(value, list | tuple | deque):
        return [_value(part, seen) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if hasattr(value, "__dict__"):
        return [(key, _value(part, seen)) for key, part in vars(value).items()]
    return repr(value)


def alike(a: Any, b: Any) -> bool:
    """Tell whether two values are the same, also where they are not a number."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (
            a.shape == b.shape
            and a.dtype == b.dtype
            and torch.equal(a.isnan(), b.isnan())
            and bool(((a == b) | a.isnan()).all())
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    return bool(a == b) or (isinstance(a, float) and a != a and b != b)
