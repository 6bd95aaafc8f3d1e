"""Where Python code keeps things beside modules: slots of objects, cells of closures, attributes of classes, globals.

A dry run gives back what passes change there, as they do the attributes of modules.
"""

from __future__ import annotations

import functools
from collections import UserDict, UserList
from collections.abc import Iterator, Sequence
from types import CellType, CodeType, FunctionType, MemberDescriptorType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import nn

ABSENT = object()
"""Stands for what is not there."""

KEEPERS = (UserDict, UserList, WeakKeyDictionary, WeakValueDictionary)
"""Containers of the standard library that keep what they hold in their attributes."""

OTHERS = {"torch", "numpy", "builtins", "latentaug", "collections", "functools", "typing", "types", "inspect"}
"""Packages whose objects are none that a model's authors have written to keep something."""


class Place(NamedTuple):
    """One place that holds something: a name in an object, a class or a namespace, or a closure's cell.

    Example:
        >>> class Count:
        ...     __slots__ = ("n",)
        >>> count = Count()
        >>> place = Place.of("count", count, "n")
        >>> count.n = 5
        >>> place.put(place.value)
        >>> hasattr(count, "n")
        False
    """

    name: str
    holder: Any
    key: str
    value: Any

    @classmethod
    def of(cls, name: str, holder: Any, key: str) -> Place:
        """Note what a place holds now."""
        return cls(name, holder, key, _read(holder, key))

    def put(self, value: Any) -> None:
        """Let the place hold something, if it holds something else."""
        holder, key = self.holder, self.key
        if _read(holder, key) is value:
            return
        if isinstance(holder, CellType):
            if value is ABSENT:
                del holder.cell_contents
            else:
                holder.cell_contents = value
        elif isinstance(holder, dict):
            if value is ABSENT:
                del holder[key]
            else:
                holder[key] = value
        elif value is ABSENT:
            delattr(holder, key)
        else:
            setattr(holder, key, value)


def _read(holder: Any, key: str) -> Any:
    if isinstance(holder, CellType):
        try:
            return holder.cell_contents
        except ValueError:  # nothing was put there yet
            return ABSENT
    if isinstance(holder, dict):
        return holder.get(key, ABSENT)
    return vars(holder).get(key, ABSENT) if isinstance(holder, type) else getattr(holder, key, ABSENT)


def slots_of(kind: type) -> list[str]:
    """Name the slots of a class that can be written.

    Example:
        >>> class Pair:
        ...     __slots__ = ("left", "right")
        >>> slots_of(Pair)
        ['left', 'right']
    """
    return [key for one in kind.__mro__ for key, value in vars(one).items() if isinstance(value, MemberDescriptorType)]


def package_of(kind: Any) -> str:
    """Name the package that a class or a function comes from."""
    return (getattr(kind, "__module__", None) or "").partition(".")[0]


def beside(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[Place]:
    """Find the places beside modules that their passes may write to.

    Of modules' classes: their attributes, what their methods close over, and the globals that these name. Hooks are
    their owners': what they note of dry runs stays.

    Args:
        modules: The modules with their names.
    """
    classes = {kind: None for _, module in modules for kind in type(module).__mro__ if package_of(kind) not in OTHERS}
    seen: set[int] = set()
    for kind in classes:
        for key, value in list(vars(kind).items()):
            inner = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if isinstance(inner, FunctionType):
                yield from _of_function(kind.__name__, inner, seen, names_globals=True)
            elif not key.startswith("__") and not callable(value) and not hasattr(type(value), "__get__"):
                yield Place.of(f"{kind.__name__}.{key}", kind, key)


def _of_function(name: str, function: FunctionType, seen: set[int], *, names_globals: bool) -> Iterator[Place]:
    if id(function) in seen:
        return
    seen.add(id(function))
    inner = getattr(function, "__wrapped__", None)
    if isinstance(inner, FunctionType):
        yield from _of_function(name, inner, seen, names_globals=names_globals)
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        place = Place.of(name, cell, key)
        if isinstance(place.value, FunctionType):
            if package_of(place.value) not in OTHERS:
                yield from _of_function(name, place.value, seen, names_globals=False)
        else:
            yield place
    if names_globals:
        space = function.__globals__
        for key in _names(function.__code__) & space.keys():
            value = space[key]
            if not (callable(value) or isinstance(value, type(functools)) or key.startswith("__")):
                yield Place.of(f"{name}'s global {key}", space, key)


def _names(code: CodeType) -> set[str]:
    """Name what a function, or one defined in it, looks up by name."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
