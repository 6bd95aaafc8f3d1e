"""Trees: no tensor of a nested output is missed, and none is taken for another."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from tests.models.hostile.containers import FeatureData, Features, FrozenFeatureData, ModelOutput
from tests.support.trees import at, leaves, swapped

A, B, Z = (torch.full((1,), float(number)) for number in range(3))
TREES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "list": ([A, "text", [B, Z]], (2, 1)),
    "tuple": ((A, (B, None, Z)), (1, 2)),
    "dict": ({"a": A, 3: {"b": B, "z": Z}}, (3, "z")),
    "ordered": (OrderedDict(a=A, b=B, z=Z), ("z",)),
    "model output": (ModelOutput(a=A, b=(B, Z)), ("b", 1)),
    "namedtuple": (Features(A, B, Z), (2,)),
    "dataclass": (FeatureData(A, B, Z), ("z",)),
    "frozen": (FrozenFeatureData(A, B, {"z": Z}), ("z", "z")),
}


@pytest.mark.parametrize(("tree", "path"), TREES.values(), ids=TREES)
def test_every_tensor_is_found_and_can_be_swapped_for_another(tree: Any, path: tuple[Any, ...]) -> None:
    assert [id(tensor) for tensor in leaves(tree)] == [id(A), id(B), id(Z)]
    assert at(tree, path) is Z
    new = torch.ones(2)
    changed = swapped(tree, Z, new)
    assert type(changed) is type(tree)
    assert [id(tensor) for tensor in leaves(changed)] == [id(A), id(B), id(new)]
    assert at(changed, path) is new
    assert at(tree, path) is Z


def test_what_holds_no_tensor_has_no_leaves() -> None:
    assert not list(leaves({"a": [None, "text", 3], "b": ()}))


def test_a_tensor_that_is_only_equal_is_not_swapped() -> None:
    (kept,) = swapped([A], A.clone(), B)
    assert kept is A


def test_a_path_that_leads_nowhere_is_no_tensor() -> None:
    for path, error in (((3,), IndexError), (("z",), TypeError)):
        with pytest.raises(error, match="list"):
            at([A, B, Z], path)
