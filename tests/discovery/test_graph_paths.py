"""Ways through a graph, against a list of all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from latentaug.discovery.graph_paths import Ways


class Node:
    """What an autograd node shows of itself."""

    def __init__(self, parents: list[Node]) -> None:
        self.next_functions = [(parent, 0) for parent in parents]


class Graph(NamedTuple):
    """Nodes after those that they depend on, where ways end, and where they begin."""

    nodes: list[Node]
    ends: list[Node]
    starts: list[Node]

    def into(self, end: Node) -> Iterator[list[Node]]:
        """Spell out every way to a node; those that begin nowhere else begin where nothing precedes."""
        starts = [node for node in self.starts if node in self.needed()] or [
            node for node in self.needed() if not node.next_functions
        ]
        if end in starts:
            yield [end]
        for parent, _ in end.next_functions:
            for way in self.into(parent):
                yield [*way, end]

    def ways(self) -> list[list[Node]]:
        return [way for end in self.ends for way in self.into(end)]

    def needed(self, without: frozenset[Node] = frozenset()) -> list[Node]:
        """List the nodes that have a way to an end past some others."""
        found = [end for end in self.ends if end not in without]
        for node in found:
            found += [parent for parent, _ in node.next_functions if parent not in (*found, *without)]
        return found


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 7))):
        parents = draw(st.lists(st.sampled_from(nodes), max_size=3)) if number else []
        nodes.append(Node(parents))
    some = st.lists(st.sampled_from(nodes), max_size=2)
    return Graph(nodes, draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3)), draw(some))


@given(graphs(), st.data())
def test_ways_are_counted_as_a_list_of_them_counts(graph: Graph, data: st.DataObject) -> None:
    ways, all_ways, needed = Ways(graph.ends, graph.starts), graph.ways(), graph.needed()
    for node in graph.nodes:
        assert ways.over(node) == sum(node in way for way in all_ways)
    some = frozenset(data.draw(st.lists(st.sampled_from(needed), max_size=3)))
    past = [way for way in all_ways if not some & set(way)]
    assert ways.over_any(some) == len(all_ways) - len(past)
    assert ways.lead_past(some) is bool(past)
    assert ways.leading_past(some) == set(graph.needed(some))
    node, end = data.draw(st.sampled_from(needed)), data.draw(st.sampled_from(needed))
    assert ways.all_over(node, end) is all(node in way for way in graph.into(end))
    into = list(graph.into(end))
    assert ways.arriving(end) == len(into)
    leading = {node: all(node in way for way in into) for node in needed if any(node in way for way in into)}
    found = ways.leading_to(end)
    assert found == leading
    assert not any(precedes(after, before) for before, after in itertools.combinations(found, 2))
    assert ways.after(node) == {other for other in needed if other is not node and precedes(node, other)}


def precedes(node: Node, other: Node) -> bool:
    return any(parent is node or precedes(node, parent) for parent, _ in other.next_functions)


def test_a_skip_connection_is_a_way_past_the_code() -> None:
    images = torch.randn(1, 1, 4, 4, requires_grad=True) * 1
    skip = images.sin()
    code = skip.exp()
    ways = Ways([(code.cos() + skip).grad_fn, None], [images.grad_fn])
    assert (ways.over(skip.grad_fn), ways.over(code.grad_fn)) == (2, 1)
    assert ways.lead_past({code.grad_fn})
    assert not ways.lead_past({skip.grad_fn})
    assert ways.all_over(skip.grad_fn, code.grad_fn)
    assert ways.over(torch.ones(1, requires_grad=True).sin().grad_fn) == 0


def test_without_an_image_that_has_a_gradient_ways_start_at_the_weights() -> None:
    weight = nn.Parameter(torch.ones(2))
    code = weight * 3
    ways = Ways([code.sum().grad_fn], [None])
    assert ways.over(code.grad_fn) == 1


@pytest.mark.parametrize(
    ("read", "shuffled"),
    [
        (lambda code: F.pixel_shuffle(code, 2), True),
        (lambda code: F.pixel_shuffle(code, 2).mean() + F.pixel_shuffle(code * 1, 2).mean(), False),
        (lambda code: code * 1, False),
    ],
    ids=["shuffled", "read otherwise too", "not shuffled"],
)
def test_pixels_that_are_made_of_channels_are_told(read: Callable[[Tensor], Tensor], shuffled: bool) -> None:
    code: Tensor = torch.randn(1, 4, 2, 2, requires_grad=True) * 1
    assert Ways([read(code).grad_fn], []).shuffles(code.grad_fn) is shuffled
    assert not Ways([code.grad_fn], []).shuffles(code.grad_fn)
