"""Slots of objects: what classes with `__slots__` keep outside of a dictionary."""

from __future__ import annotations

from types import MemberDescriptorType
from typing import Any, NamedTuple

ABSENT = object()
"""Stands for what is not there."""


class Slot(NamedTuple):
    """A slot of an object, and what it holds.

    Example:
        >>> class Count:
        ...     __slots__ = ("n",)
        >>> count = Count()
        >>> slot = Slot.of("count", count, "n")
        >>> count.n = 5
        >>> slot.put(slot.value)
        >>> hasattr(count, "n")
        False
    """

    name: str
    holder: Any
    key: str
    value: Any

    @classmethod
    def of(cls, name: str, holder: Any, key: str) -> Slot:
        """Note what a slot holds now."""
        return cls(name, holder, key, getattr(holder, key, ABSENT))

    def put(self, value: Any) -> None:
        """Let the slot hold something, if it holds something else."""
        if getattr(self.holder, self.key, ABSENT) is value:
            return
        if value is ABSENT:
            delattr(self.holder, self.key)
        else:
            setattr(self.holder, self.key, value)


def slots_of(kind: type) -> list[str]:
    """Name the slots of a class that can be written.

    Example:
        >>> class Pair:
        ...     __slots__ = ("left", "right")
        >>> slots_of(Pair)
        ['left', 'right']
    """
    return [key for one in kind.__mro__ for key, value in vars(one).items() if isinstance(value, MemberDescriptorType)]
