"""Single places that hold something: slots of objects, cells of closures, attributes of classes."""

from __future__ import annotations

from collections import UserDict, UserList
from types import CellType, MemberDescriptorType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

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
