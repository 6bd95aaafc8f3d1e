"""Stand-ins for a module's forward."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from latentaug.tracing.intercept import is_compiled, overridden, visible_modules


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
