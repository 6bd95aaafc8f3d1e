"""Nested outputs: the tensors in them, and another in the place of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor


def leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested output."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for child in tree.values():
            yield from leaves(child)
    elif isinstance(tree, list | tuple):
        for child in tree:
            yield from leaves(child)
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from leaves(getattr(tree, field.name))


def swapped(tree: Any, old: Tensor, new: Tensor) -> Any:
    """Return `tree` with `new` wherever the very tensor `old` stands."""
    if tree is old:
        return new
    if isinstance(tree, dict):
        return type(tree)((key, swapped(child, old, new)) for key, child in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(swapped(child, old, new) for child in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(swapped(child, old, new) for child in tree)
    if dataclasses.is_dataclass(tree):
        return dataclasses.replace(
            tree, **{f.name: swapped(getattr(tree, f.name), old, new) for f in dataclasses.fields(tree)}
        )
    return tree


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """Follow keys, positions and field names."""
    for key in path:
        tree = getattr(tree, key) if dataclasses.is_dataclass(tree) and not isinstance(tree, dict) else tree[key]
    return tree
