"""Trees of tensors, and what tells one tensor from another."""

from __future__ import annotations

import gc
import types
import weakref
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from latentaug.tracing.tree import item_at, map_tensors, storage_of, tensors_in, version_of
from tests.models.hostile.containers import ModelOutput

Pair = namedtuple("Pair", "left right")


@dataclass
class Data:
    value: Any
    rest: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class FrozenData:
    value: Any


T = [torch.full((1,), float(i)) for i in range(4)]
TREES: dict[str, tuple[Any, list[tuple[Any, ...]]]] = {
    "tensor": (T[0], [()]),
    "list": ([T[0], None, [T[1]]], [(0,), (2, 0)]),
    "tuple": ((T[0], "text", (T[1], 3)), [(0,), (2, 0)]),
    "dict": ({"a": T[0], 3: {"b": T[1]}}, [("a",), (3, "b")]),
    "ordered": (OrderedDict(b=T[0], a=T[1]), [("b",), ("a",)]),
    "model output": (ModelOutput(loss=T[0], logits=(T[1],)), [("loss",), ("logits", 0)]),
    "namedtuple": (Pair(T[0], [T[1]]), [(0,), (1, 0)]),
    "dataclass": (Data(T[0], [T[1]]), [("value",), ("rest", 0)]),
    "frozen": (FrozenData({"x": T[0]}), [("value", "x")]),
    "empty": ({"a": [], "b": (), "c": None}, []),
    "size": (torch.Size([2, 3]), []),
    "return type": (torch.max(torch.eye(3), 0), [(0,), (1,)]),
    "class": ([Data], []),
}


@pytest.mark.parametrize("kind", TREES)
def test_tensors_are_found_with_their_paths(kind: str) -> None:
    tree, paths = TREES[kind]
    found = list(tensors_in(tree))
    assert [path for path, _ in found] == paths
    assert all(item_at(tree, path) is tensor for path, tensor in found)


@pytest.mark.parametrize("kind", TREES)
def test_mapping_copies_containers_and_keeps_their_types(kind: str) -> None:
    tree, _ = TREES[kind]
    copied = map_tensors(tree, lambda tensor: tensor)
    assert type(copied) is type(tree)
    assert [id(t) for _, t in tensors_in(copied)] == [id(t) for _, t in tensors_in(tree)]
    doubled = map_tensors(tree, lambda tensor: tensor * 2)
    for (path, new), (_, old) in zip(tensors_in(doubled), tensors_in(tree), strict=True):
        assert torch.equal(new, old * 2), path


def test_a_copied_container_does_not_notice_what_happens_to_the_original() -> None:
    tree = {"list": [T[0], T[1]], "empty": [], "data": Data(T[2], [1])}
    copied = map_tensors(tree, lambda tensor: tensor)
    tree["list"].pop()
    tree["empty"].append(T[3])
    tree["data"].value = None
    assert [path for path, _ in tensors_in(copied)] == [("list", 0), ("list", 1), ("data", "value")]


def test_mappings_that_cannot_be_copied_are_left_as_they_are() -> None:
    assert list(tensors_in(types.MappingProxyType({"a": T[0]}))) == [(("a",), T[0])]


def test_one_tensor_in_two_places_stays_one() -> None:
    mapped = map_tensors([T[0], {"again": T[0]}], lambda tensor: tensor + 1)
    assert mapped[0] is mapped[1]["again"]


def test_mapping_leaves_no_cycle_behind() -> None:
    gc.collect()
    gc.disable()
    try:
        tensor = torch.ones(1)
        reference = weakref.ref(tensor)
        map_tensors([tensor], lambda t: t * 2)
        del tensor
        assert reference() is None
    finally:
        gc.enable()


def test_versions_count_changes_in_place() -> None:
    tensor = torch.zeros(2)
    before = version_of(tensor)
    tensor[:1].add_(1)
    assert version_of(tensor) != before
    with torch.inference_mode():
        assert version_of(torch.zeros(2)) is None


def test_views_share_a_storage() -> None:
    tensor = torch.zeros(4)
    assert storage_of(tensor) == storage_of(tensor[:2])
    assert storage_of(tensor) != storage_of(tensor.clone())
    sparse = torch.eye(2).to_sparse()
    assert storage_of(sparse) == storage_of(sparse)
