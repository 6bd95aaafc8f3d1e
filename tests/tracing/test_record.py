"""What a recorded pass tells: calls, their inputs, and where results come from."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentaug.tracing.record import InputWatch, ancestors, record, saving_now
from latentaug.tracing.tree import storage_of
from tests.support.traces import traces


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
    with pytest.raises(TypeError, match="must be Tensor, not str"):  # two modules deep
        record(model, lambda: model("text"))
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


@pytest.mark.parametrize("older", [False, True], ids=["this PyTorch", "before 2.8"])
@pytest.mark.parametrize(("reentrant", "inside"), [(False, "packed"), (True, "none")])
def test_checkpointing_is_told_by_how_autograd_saves(
    reentrant: bool, inside: str, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if older:
        monkeypatch.setattr("latentaug.tracing.record._top_hooks", None)

    class Told(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(saving_now())
            return x.exp()

    seen = list[str]()
    model, x = nn.Sequential(Told(), nn.ReLU()), torch.ones(2, requires_grad=True)

    def run() -> Tensor:
        checkpointed: Tensor = checkpoint(model[0], x, use_reentrant=reentrant)
        return model(checkpointed)

    trace, output = record(model, lambda: model(x), sources=[("1", ())])
    assert [call.saving for call in trace.walk()] == ["plain"] * 3
    run().sum().backward()
    assert seen[:3] == ["plain", inside, "plain"]
    with torch.no_grad():
        model(x)
    assert seen[-1] == "none"
    with torch.autograd.graph.save_on_cpu():
        assert saving_now() == "packed"
    output.sum().backward()  # what was asked is no part of the graph


def test_how_autograd_saves_is_recorded_with_each_call() -> None:
    class Checkpoints(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.first(x)
            return checkpoint(self.second, x, use_reentrant=False)

    model = Checkpoints()
    trace, _ = record(model, lambda: model(torch.ones(1, 2)), sources=[("first", ())])
    assert {call.name: call.saving for call in trace.walk()} == {"": "plain", "first": "none", "second": "packed"}
