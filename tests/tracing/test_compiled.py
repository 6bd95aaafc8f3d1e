"""Compiled models: our own code is never traced, and parts are compiled as the whole was."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.tracing.compiled import compile_as, compiler_of, gradients_twice, uncompiled, untapped_parts
from latentaug.tracing.intercept import is_compiled
from tests.support.graphs import Graphs


@pytest.fixture
def graphs() -> Graphs:
    torch._dynamo.reset()
    return Graphs()


def nested() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), nn.Tanh()
    )


def test_a_function_of_ours_runs_as_it_is_written_within_compiled_code(graphs: Graphs) -> None:
    seen = []

    @uncompiled
    def ours(value: Tensor) -> Tensor:
        seen.append(torch.compiler.is_compiling())
        return value.sin()

    def theirs(value: Tensor) -> Tensor:
        return ours(value * 2) + 1

    value = torch.ones(2)
    assert torch.equal(ours(value), value.sin())
    compiled = torch.compile(theirs, backend=graphs)
    for _ in range(2):
        assert torch.equal(compiled(value), (value * 2).sin() + 1)
    assert seen == [False] * 3
    assert graphs.count == 2  # before and after


def test_it_keeps_its_signature_and_name() -> None:
    @uncompiled
    def ours(value: int, *, of: str = "x") -> None:
        """Do nothing."""

    assert [*inspect.signature(ours).parameters] == ["value", "of"]
    assert (ours.__name__, ours.__doc__) == ("ours", "Do nothing.")


@pytest.mark.parametrize(
    ("tapped", "expected"),
    [
        (["0"], ["0", "1.0", "1.1", "2"]),
        (["0.1"], ["0.0", "0.1", "1.0", "1.1", "2"]),
        (["2", "1.0"], ["0", "1.0", "1.1", "2"]),
        ([""], [""]),
        ([], [""]),
    ],
)
def test_parts_are_the_largest_that_hold_no_tapped_layer(tapped: list[str], expected: list[str]) -> None:
    assert [name for name, _ in untapped_parts(nested(), tapped)] == expected


@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_parts_are_compiled_as_the_whole_was(how: str, graphs: Graphs) -> None:
    whole, part = nn.Linear(2, 2), nn.Linear(2, 2)
    made: Any = whole
    if how == "torch.compile":
        made = torch.compile(whole, backend=graphs)
    else:
        whole.compile(backend=graphs)
    compiler = compiler_of(made)
    assert compiler is not None
    compile_as(part, compiler)
    assert is_compiled(part)
    value = torch.ones(1, 2)
    assert torch.equal(part(value), part.forward(value))
    assert graphs.count == 1
    assert not is_compiled(copy.deepcopy(part))
    assert [*part.state_dict()] == ["weight", "bias"]
    called = part.__dict__["_compiled_call_impl"]
    compile_as(part, compiler)
    assert part.__dict__["_compiled_call_impl"] is called


def test_what_is_not_compiled_has_no_compiler() -> None:
    assert compiler_of(nn.Linear(2, 2)) is None


def test_many_parts_are_compiled_each_by_itself(graphs: Graphs) -> None:
    """The compiler gives up on one piece of code after eight times; calls of all modules are the same one."""
    parts = [nn.Sequential(nn.Linear(2, n + 1)) for n in range(12)]
    compile_with: Callable[..., Any] = lambda call: torch.compile(call, backend=graphs)  # noqa: E731
    for part in parts:
        compile_as(part, compile_with)
        part(torch.ones(1, 2))
    assert graphs.count == len(parts)


def test_gradients_are_taken_twice_within_the_context_alone() -> None:
    import torch._functorch.config as config

    if not hasattr(config, "donated_buffer"):
        pytest.skip("this release of PyTorch keeps what it has saved")
    before = config.donated_buffer
    with gradients_twice():
        assert not config.donated_buffer
    assert config.donated_buffer == before
