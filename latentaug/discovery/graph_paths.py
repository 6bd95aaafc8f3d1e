"""Ways through an autograd graph: what depends on what, and what all of the output passes through."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

_JOINS = re.compile("Cat")


class Ways:
    """Counts the ways through the autograd graph, from the images to the outputs, that lead over a node.

    Where no image has a gradient, all being integers, ways start at the weights.
    """

    def __init__(self, outputs: Iterable[Any], images: Iterable[Any]):
        self._ends = Counter(node for node in outputs if node is not None)
        self._order = _topological(self._ends)
        self._starts = {node for node in images if node in self._order} or {
            node for node in self._order if not _parents(node)
        }
        self._before = self._around(frozenset())
        self._after: Counter[Any] = Counter(self._ends)
        for node in reversed(self._order):
            for parent in _parents(node):
                self._after[parent] += self._after[node]

    def _around(self, closed: Collection[Any]) -> dict[Any, int]:
        """Count the ways from the images to each node that avoid the closed ones."""
        ways: dict[Any, int] = {}
        for node in self._order:
            arriving = (node in self._starts) + sum(ways[parent] for parent in _parents(node))
            ways[node] = 0 if node in closed else arriving
        return ways

    def over(self, node: Any) -> int:
        """Count the ways over a node: none if the outputs do not depend on it, or it not on the images."""
        return self._before.get(node, 0) * self._after[node]

    def over_any(self, nodes: Collection[Any]) -> int:
        """Count the ways over at least one of the nodes."""
        around = self._around(nodes)
        return sum(times * (self._before[end] - around[end]) for end, times in self._ends.items())

    def blends(self, nodes: Collection[Any], others: Collection[Any]) -> bool:
        """Tell whether what comes of others, past the nodes, is added to what comes of the nodes, or the like.

        What is put beside it, by concatenation, leaves it as it is.
        """
        inside, beside = set(nodes), set(others) - set(nodes)
        for node in self._order if beside else ():
            if node in inside:
                continue
            parents = _parents(node)
            within = any(parent in inside for parent in parents)
            if within and any(parent in beside for parent in parents) and not _JOINS.match(type(node).__name__):
                return True
            if within:
                inside.add(node)
                beside.discard(node)
            elif any(parent in beside for parent in parents):
                beside.add(node)
        return False

    def all_over(self, node: Any, end: Any) -> bool:
        """Tell whether all ways from the images to `end` lead over `node`."""
        return not self._around({node})[end]

    def arriving(self, node: Any) -> int:
        """Count the ways from the images to a node."""
        return self._before.get(node, 0)

    def leading_to(self, end: Any) -> dict[Any, bool]:
        """List what ways from the images to `end` lead over, in order, and tell of each whether all of them do."""
        ways = Counter({end: 1})
        for node in reversed(self._order):
            for parent in _parents(node):
                ways[parent] += ways[node]
        passed = {node: self._before[node] * ways[node] for node in self._order}
        return {node: times == self._before[end] for node, times in passed.items() if times}

    def lead_past(self, nodes: Collection[Any]) -> bool:
        """Tell whether some way leads over none of the nodes."""
        around = self._around(nodes)
        return any(around[end] for end in self._ends)

    def leading_past(self, nodes: Collection[Any]) -> set[Any]:
        """Collect what has a way to the outputs that leads over none of the nodes."""
        leading = set(self._ends) - set(nodes)
        for node in reversed(self._order):
            if node in leading:
                leading.update(parent for parent in _parents(node) if parent not in nodes)
        return leading

    def shuffles(self, node: Any) -> bool:
        """Tell whether all that reads a node makes pixels of its channels."""
        readers = [reader for reader in self._order if node in _parents(reader)]
        return bool(readers) and all("PixelShuffle" in type(reader).__name__ for reader in readers)

    def after(self, node: Any) -> set[Any]:
        """Collect what follows from a node."""
        following = {node}
        following.update(other for other in self._order if any(parent in following for parent in _parents(other)))
        return following - {node}


def _parents(node: Any) -> list[Any]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _topological(ends: Iterable[Any]) -> dict[Any, None]:
    """Order nodes such that each comes after those that it depends on."""
    order: dict[Any, None] = {}
    stack = [(end, False) for end in ends]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order[node] = None
        elif node not in order:
            stack.append((node, True))
            stack.extend((parent, False) for parent in _parents(node) if parent not in order)
    return order
