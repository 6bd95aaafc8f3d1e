"""Stand-ins for a module's forward."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from latentaug.tracing.intercept import is_compiled, overridden, stand_in, visible_modules


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


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda model: torch.jit.trace(model, torch.rand(2, 3)), RuntimeError),
        (torch.jit.script, AttributeError),
        (lambda model: torch.export.export(model, (torch.rand(2, 3),)), AttributeError),
    ],
    ids=["trace", "script", "export"],
)
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_a_model_that_is_watched_is_neither_traced_nor_exported(make: Any, error: type[Exception]) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with (
        overridden({"": model, "0": model[0]}, lambda name, original, args, kwargs: original(*args, **kwargs)),
        pytest.raises(error, match=r"cannot be \w+( or \w+)? while a LatentTap is open"),
    ):
        make(model)
    assert "forward" not in {**vars(model), **vars(model[0])}


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_what_is_traced_is_the_model_without_what_stands_in() -> None:
    model, images = nn.Sequential(nn.Linear(3, 2)), torch.rand(2, 3)
    plain = model(images)
    remove = stand_in({"0": model[0]}, lambda name, original, args, kwargs: 2 * original(*args, **kwargs))
    traced = torch.jit.trace(model, images, check_trace=False)
    with pytest.raises(AttributeError, match="cannot be scripted while it is augmented"):
        torch.jit.script(model)
    assert torch.equal(model(images), 2 * plain)
    remove()
    assert torch.equal(traced(images), plain)
