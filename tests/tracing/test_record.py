"""Trees of tensors, stand-ins for forward, and the recorder."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import types
import weakref
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.tracing.intercept import is_compiled, overridden, visible_modules
from latentaug.tracing.record import InputWatch, ancestors, record
from latentaug.tracing.tree import item_at, map_tensors, storage_of, tensors_in, version_of
from tests.models.hostile.containers import ModelOutput
from tests.support.traces import traces

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


@pytest.mark.parametrize(
    "change",
    [
        lambda args: args[0].add_(1),
        lambda args: args[1].append(torch.ones(1)),
        lambda args: args[1].pop(),
        lambda args: args[1].append(args[1].pop() * 2),
        lambda args: args[1].reverse(),
        lambda args: args[2]["a"].__setitem__(0, 5.0),
        lambda args: args[2].update(b=args[2].pop("a")),
    ],
)
def test_changes_to_inputs_are_noticed(change: Any) -> None:
    args = (torch.zeros(2), [torch.zeros(1), torch.ones(1)], {"a": torch.zeros(1)})
    watch = InputWatch(args, {})
    assert not watch.changed()
    change(args)
    assert watch.changed()


def test_ancestors_are_all_that_a_result_was_computed_from() -> None:
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    left, right = a * 2, b * 3
    found = ancestors([(left.exp() + left).grad_fn, None])
    assert left.grad_fn in found
    assert right.grad_fn not in found


# Standing in ------------------------------------------------------------------------------------------------------


def test_an_override_looks_like_the_forward_it_stands_for() -> None:
    model = nn.Linear(2, 2)
    signature = inspect.signature(model.forward)
    with overridden({"": model}, lambda name, original, args, kwargs: original(*args, **kwargs)):
        assert inspect.signature(model.forward) == signature
        for dangerous in (copy.deepcopy, copy.copy, pickle.dumps):
            with pytest.raises(RuntimeError, match=r"cannot be (copied|pickled) while a LatentTap is open"):
                dangerous(model.forward)
    assert "forward" not in model.__dict__


def test_overrides_nest_and_restore_what_stood_there() -> None:
    model = nn.Identity()
    model.forward = lambda x: x + 1  # type: ignore[method-assign]
    mine = model.forward

    def times(factor: int) -> Any:
        return lambda name, original, args, kwargs: original(*args, **kwargs) * factor

    with overridden({"a": model}, times(2)):
        with overridden({"a": model}, times(3)):
            assert model(torch.ones(1)) == 12
        assert model(torch.ones(1)) == 4
    assert model.forward is mine


def test_a_compiled_module_is_told_apart() -> None:
    plain = nn.Linear(1, 1)
    assert not is_compiled(plain)
    assert is_compiled(torch.compile(plain, backend="eager"))
    plain.compile(backend="eager")
    assert is_compiled(plain)


def test_compiled_parts_are_closed_unless_something_inside_is_wanted() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU()))
    model[0].compile(backend="eager")
    assert set(visible_modules(model)) == {"", "0", "0.0", "1", "1.0"}
    assert set(visible_modules(model, frozenset())) == {"", "0", "1", "1.0"}
    assert set(visible_modules(model, frozenset({"0.0"}))) == {"", "0", "0.0", "1", "1.0"}


# Recording --------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Calls its parts in a known order, one of them twice, one by its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU(), nn.Tanh())
        self.scale = Scale()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = self.inner(x)
        self.scale.forward(a)
        return {"out": self.inner(a)}


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


def test_a_recording_is_the_tree_of_calls() -> None:
    model = Twice()
    x = torch.randn(2, 3, requires_grad=True)
    before = traces(model)
    trace, output = record(model, lambda: model(x))
    assert traces(model) == before
    assert [(call.name, call.number) for call in trace.walk()] == [
        ("", 0),
        *[("inner", 0), ("inner.0", 0), ("inner.1", 0)],
        ("scale", 0),
        *[("inner", 1), ("inner.0", 1), ("inner.1", 1)],
    ]
    calls = {call.key: call for call in trace.walk()}
    assert all(child.parent is call for call in trace.walk() for child in call.children)
    first, scale, second = (calls[key] for key in (("inner", 0), ("scale", 0), ("inner", 1)))
    assert trace.start < first.start < first.finish < scale.start < second.start < second.finish < trace.finish
    assert [call.impure for call in (trace, first, scale, second)] == [False, False, True, False]
    assert first.moved() == [first.output]  # by what came after it
    assert not second.moved()
    assert first.given == [(2, 3)]
    assert storage_of(x) in first.inputs
    assert trace.tensors[0][0] == ("out",)
    assert trace.nodes == [output["out"].grad_fn]
    assert first.nodes[0] is not scale.nodes[0]


def test_a_recording_that_fails_leaves_nothing() -> None:
    model = Twice()
    before = traces(model)
    with pytest.raises(RuntimeError):
        record(model, lambda: model(torch.ones(2, 3, requires_grad=True).expand(2, 2, 3)[0].tanh_().long()))
    assert traces(model) == before
    with pytest.raises(RuntimeError, match="Twice was not called in the pass to record"):
        record(model, lambda: None)


def test_another_root_called_meanwhile_is_ignored() -> None:
    model = Twice()

    def run() -> Any:
        model.inner(torch.ones(1))
        return model(torch.ones(1))

    trace, _ = record(model, run)
    assert trace.name == ""
    assert [child.number for child in trace.children if child.name == "inner"] == [1, 2]


def test_mappings_that_cannot_be_copied_are_left_as_they_are() -> None:
    assert list(tensors_in(types.MappingProxyType({"a": T[0]}))) == [(("a",), T[0])]


def test_a_trace_is_gone_with_the_last_reference_to_it() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    gc.collect()
    gc.disable()
    try:
        trace, _ = record(model, lambda: model(torch.ones(1, 2)))
        inner = weakref.ref(trace.children[0])
        assert inner().parent is trace
        del trace
        assert inner() is None
    finally:
        gc.enable()
