"""Where Python code keeps things beside modules."""

from __future__ import annotations

from typing import Any

import pytest

from latentaug.tracing.places import Place


class Slotted:
    __slots__ = ("n",)


class Plain:
    n: Any


def cell() -> Any:
    n = 1
    return (lambda: n).__closure__[0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("holder", "key"),
    [(Slotted(), "n"), (Plain, "n"), ({}, "n"), (cell(), "n")],
    ids=["slot", "class", "names", "cell"],
)
def test_a_place_gets_back_what_it_held_or_nothing(holder: Any, key: str) -> None:
    before = Place.of("count", holder, key)
    before.put(5)
    assert Place.of("count", holder, key).value == 5
    before.put(before.value)
    assert Place.of("count", holder, key).value is before.value
