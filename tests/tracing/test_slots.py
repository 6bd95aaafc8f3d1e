"""Slots of objects get back what they held."""

from __future__ import annotations

import pytest

from latentaug.tracing.slots import ABSENT, Slot, slots_of


class Slotted:
    __slots__ = ("n",)


class Derived(Slotted):
    __slots__ = ("more",)


@pytest.mark.parametrize("held", [3, ABSENT], ids=["something", "nothing"])
def test_a_slot_gets_back_what_it_held_or_nothing(held: object) -> None:
    holder = Slotted()
    if held is not ABSENT:
        holder.n = held
    before = Slot.of("count", holder, "n")
    before.put(5)
    assert Slot.of("count", holder, "n").value == 5
    before.put(before.value)
    assert Slot.of("count", holder, "n").value is held


def test_slots_are_those_of_all_base_classes() -> None:
    assert sorted(slots_of(Derived)) == ["more", "n"]
    assert slots_of(int) == []
