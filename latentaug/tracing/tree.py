"""Tensors in what models take and return: nested lists, tuples, mappings and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Path: TypeAlias = tuple[Any, ...]

_ATOMS = {type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout}


def children_of(tree: Any) -> Iterable[tuple[Any, Any]]:
    """Return (key, child) of each part of a container that models return; nothing for a leaf."""
    if type(tree) in _ATOMS:  # most of what operations are given, and far quicker to tell than the rest
        return ()
    if isinstance(tree, list | tuple):
        return enumerate(tree)
    if isinstance(tree, Mapping):
        return tree.items()
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if hasattr(tree, f.name)]
    return ()


def tensors_in(tree: Any, path: Path = ()) -> list[tuple[Path, Tensor]]:
    """Return (path, tensor) for every tensor in nested lists, tuples, mappings and dataclasses, in order."""
    if isinstance(tree, Tensor):
        return [(path, tree)]
    found: list[tuple[Path, Tensor]] = []
    for key, child in children_of(tree):
        if isinstance(child, Tensor):
            found.append(((*path, key), child))
        elif type(child) not in _ATOMS:
            found += tensors_in(child, (*path, key))
    return found


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of `tree`, containers of the same types, with `function` applied to every tensor.

    A tensor that stands in several places is one tensor in the result too.

    Example:
        >>> import torch
        >>> map_tensors({"out": [torch.ones(1), None]}, lambda t: t + 1)
        {'out': [tensor([2.]), None]}
    """
    return _mapped(tree, function, {})


def _mapped(node: Any, function: Callable[[Tensor], Tensor], done: dict[int, Tensor]) -> Any:
    if isinstance(node, Tensor):
        if id(node) not in done:
            done[id(node)] = function(node)
        return done[id(node)]
    children = [(key, _mapped(child, function, done)) for key, child in children_of(node)]
    if isinstance(node, tuple):
        values = [child for _, child in children]
        return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)
    if not children:
        return copy.copy(node) if isinstance(node, list | dict) else node
    result = copy.copy(node)
    for key, child in children:
        if isinstance(node, list | Mapping):
            result[key] = child
        else:
            object.__setattr__(result, key, child)
    return result


def item_at(tree: Any, path: Path) -> Any:
    """Follow `path` into `tree`: keys of mappings, positions of sequences, fields of dataclasses."""
    for key in path:
        tree = tree[key] if isinstance(tree, list | tuple | Mapping) else getattr(tree, key)
    return tree


def copied(tensor: Tensor) -> Tensor:
    """Return a copy: within the graph of a tensor that has one, and a leaf otherwise."""
    return tensor.clone() if tensor.grad_fn is not None else tensor.detach().clone()


def is_differentiable(tensor: Tensor) -> bool:
    """Tell whether the tensor's type is one that gradients exist for."""
    return tensor.is_floating_point() or tensor.is_complex()


def version_of(tensor: Tensor) -> int | None:
    """Count of in-place changes so far; None for inference tensors, which keep no count."""
    return None if tensor.is_inference() else tensor._version


def storage_of(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor; views of one tensor share it."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without one storage
        return id(tensor)
