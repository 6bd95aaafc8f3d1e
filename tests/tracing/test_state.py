"""What modules keep beside weights and buffers: what a pass changes of it, and how it is given back."""

from __future__ import annotations

import random
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentaug.tracing.state import State, named_modules_of, restore


@dataclass
class Bank:
    """An object of the model's own that keeps features."""

    rows: Tensor
    filled: int = 0


class Keeping(nn.Module):
    """Keeps all kinds of things beside weights and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm2d(2)
        self.tensor, self.features, self.named = torch.zeros(2), [torch.zeros(1)], {"a": torch.zeros(1)}
        self.count, self.pair, self.deep = 0, (torch.zeros(1), "x"), {"list": [torch.zeros(1), [1, 2]]}
        self.queue, self.names, self.order = deque([1, 2]), {"b"}, OrderedDict(a=1, b=2)
        self.bank, self.notes = Bank(torch.zeros(3)), SimpleNamespace(n=1)
        self.generator, self.python, self.numpy = torch.Generator(), random.Random(0), np.random.default_rng(0)
        self.array = np.zeros(3)
        self.teacher = [nn.Linear(2, 2)]


CHANGES: list[tuple[Callable[[Any], object], str]] = [
    (lambda m: setattr(m, "tensor", torch.zeros(2)), "tensor"),
    (lambda m: m.tensor.add_(1), "tensor"),
    (lambda m: m.tensor.data.add_(1), "tensor"),
    (lambda m: m.features.append(torch.zeros(1)), "features"),
    (lambda m: m.features.__setitem__(0, torch.zeros(1)), "features"),
    (lambda m: m.features[0].add_(1), "features"),
    (lambda m: m.features.clear(), "features"),
    (lambda m: m.named.__setitem__("b", 1), "named"),
    (lambda m: m.named["a"].add_(1), "named"),
    (lambda m: setattr(m, "count", m.count + 1), "count"),
    (lambda m: setattr(m, "new", 1), "new"),
    (lambda m: delattr(m, "count"), "count"),
    (lambda m: m.pair[0].add_(1), "pair"),
    (lambda m: m.deep["list"][1].append(3), "deep"),
    (lambda m: m.deep["list"][0].add_(1), "deep"),
    (lambda m: m.queue.popleft(), "queue"),
    (lambda m: m.names.add("c"), "names"),
    (lambda m: m.order.move_to_end("a"), "order"),
    (lambda m: setattr(m.bank, "filled", 3), "bank"),
    (lambda m: m.bank.rows.add_(1), "bank"),
    (lambda m: setattr(m.notes, "n", 2), "notes"),
    (lambda m: torch.rand(1, generator=m.generator), "generator"),
    (lambda m: m.python.random(), "python"),
    (lambda m: m.numpy.random(), "numpy"),
    (lambda m: m.array.__iadd__(1), "array"),
    (lambda m: setattr(m.teacher[0], "passes", 1), "teacher.passes"),
]
NAMES = [f"{number}-{name}" for number, (_, name) in enumerate(CHANGES)]


def plain(value: Any) -> Any:
    """Return what can be compared: of everything that a module keeps, the values."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, dict):
        return [(key, plain(part)) for key, part in value.items()]
    if isinstance(value, list | tuple | deque):
        return [plain(part) for part in value]
    if isinstance(value, nn.Module):
        return {key: plain(part) for key, part in vars(value).items() if not key.startswith("_")}
    return plain(vars(value)) if isinstance(value, Bank | SimpleNamespace) else value


@pytest.mark.parametrize(("change", "name"), CHANGES, ids=NAMES)
def test_what_was_changed_is_named_and_given_back(change: Callable[[Any], object], name: str) -> None:
    model = nn.Sequential(Keeping())
    kept, before = model[0], plain(model[0])
    things = {key: id(value) for key, value in vars(kept).items()}
    state = State(model, copied=None)
    change(kept)
    assert State(model).changed_since(state) == {f"0.{name}"}
    state.give_back(values=True)
    assert plain(kept) == before
    assert {key: id(value) for key, value in vars(kept).items()} == things


@pytest.mark.parametrize("change", [change for change, _ in CHANGES], ids=NAMES)
def test_what_is_lent_may_be_changed(change: Callable[[Any], object]) -> None:
    model = nn.Sequential(Keeping())
    then, before = State(model), plain(model[0])
    change(model[0])
    now, after = State(model), plain(model[0])
    then.lend()
    assert plain(model[0]) == before
    for other, _ in CHANGES[:2]:
        other(model[0])
    now.give_back()
    assert plain(model[0]) == after


def test_nothing_is_changed_by_looking() -> None:
    model = nn.Sequential(Keeping())
    state = State(model)
    model[0].inner(torch.randn(2, 2, 3, 3))  # statistics are no attributes
    assert State(model).changed_since(state) == set()
    assert [name for name, _ in state.hidden] == ["0.teacher"]


def test_equal_numbers_are_the_same() -> None:
    model = Keeping()
    model.share = 0.5
    state = State(model)
    model.share = float("0.5")
    assert State(model).changed_since(state) == set()


def test_large_tensors_are_copied_only_if_asked_for() -> None:
    model = nn.ReLU()
    model.grid = torch.zeros(100, 100)
    without, with_copy = State(model), State(model, copied=["grid"])
    model.grid.add_(1)
    assert without.altered() == {"grid"}
    assert with_copy.altered() == set()
    own = model.grid
    with_copy.lend()
    assert not model.grid.any()
    State(model, left_out=["grid"]).give_back()
    assert model.grid is not own


def test_what_is_left_out_stays() -> None:
    model = nn.ReLU()
    model.features, model.count = torch.zeros(1), 0
    state = State(model, left_out=["features"])
    model.features, model.count = torch.ones(1), 1
    state.give_back()
    assert (model.features.tolist(), model.count) == ([1.0], 0)


def test_a_graph_that_was_not_there_is_taken_away() -> None:
    tensor, weight = torch.zeros(2), torch.ones(2, requires_grad=True)
    copy = tensor.clone()
    tensor.add_(weight)
    restore(tensor, copy)
    assert tensor.is_leaf
    assert not tensor.requires_grad
    assert tensor.tolist() == [0.0, 0.0]


def test_modules_are_named_as_by_torch() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Linear(1, 1)), nn.ReLU())
    model.append(model[0][0])
    assert dict(named_modules_of(model)) == dict(model.named_modules())


def test_a_model_that_hooks_its_parts_in_its_first_pass_does_not_do_so_again() -> None:
    class Hooking(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            if not getattr(self, "is_hooked", False):
                self[0].register_forward_hook(lambda module, inputs, output: 2 * output)
                self.is_hooked = True
            return super().forward(images)

    model = Hooking(nn.Linear(2, 2))
    state = State(model)
    expected = model(torch.ones(1, 2))
    state.give_back()
    assert torch.equal(model(torch.ones(1, 2)), expected)


@dataclass(slots=True)
class Slotted:
    passes: int


def test_objects_with_slots_and_containers_of_the_standard_library_are_given_back() -> None:
    model = nn.Identity()
    model.count, model.cache, model.parts = Slotted(0), UserDict(n=0), WeakKeyDictionary({model: 0})  # type: ignore[assignment]
    state = State(model)
    model.count.passes += 1
    model.cache["n"] = 2
    model.parts[model] = 3
    assert State(model).changed_since(state) == {"count", "cache", "parts"}
    state.give_back()
    assert (model.count.passes, model.cache["n"], model.parts[model]) == (0, 0, 0)
