"""What replays are held against.

It is neither kind of replay: a fresh model, seeded alike, is run once with the code changed on its way out of the
layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tests.models.case import Case
from tests.support.random_streams import seed_all
from tests.support.trees import at, swapped


@dataclass
class Seen:
    """How often the layer was called, and the code that it returned on the call that counts."""

    calls: int = 0
    code: Tensor | None = None


def change_code(
    model: nn.Module, layer: str, path: tuple[Any, ...], number: int | None, change: Callable[[Tensor], Tensor]
) -> Seen:
    """Let call `number` of the layer return a changed code, for as long as the model lives; None only watches."""
    module, seen = model.get_submodule(layer), Seen()
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        seen.calls += 1
        if seen.calls - 1 != number:
            return output
        code = at(output, path)
        seen.code = code.clone()
        return swapped(output, code, change(code))

    module.__dict__["forward"] = forward
    return seen


def halved(code: Tensor) -> Tensor:
    return code * 0.5


def unchanged(code: Tensor) -> Tensor:
    return code


def oracle(case: Case, train: bool, change: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Any, Tensor]:
    """Run a fresh model, seeded alike, with the code changed as the layer returns it."""
    model = case.model(train)
    seen = change_code(model, case.layer, case.path, number_of_the_call(case, train), change)
    seed_all(0)
    output = model(case.images())
    assert seen.code is not None, f"{case.layer!r} is not called so often"
    return model, output, seen.code


@functools.cache  # one dry run of each model
def number_of_the_call(case: Case, train: bool) -> int:
    if case.call >= 0:
        return case.call
    model = case.model(train)
    seen = change_code(model, case.layer, case.path, None, unchanged)
    seed_all(0)
    model(case.images())
    return seen.calls + case.call
