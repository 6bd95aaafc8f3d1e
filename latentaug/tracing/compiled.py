"""Compiled models: our own code runs as it is written, and what holds no tapped layer is compiled part by part."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

from torch import nn

from latentaug.tracing.intercept import is_compiled

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function run as it is written, also where compiled code calls it; compiled parts that it calls stay so.

    As `torch.compiler.disable`, which imports the compiler: that takes seconds, and few need it.

    Example:
        >>> uncompiled(abs)(-1)
        1
    """
    disabled: Callable[P, T] | None = None

    @functools.wraps(function)
    def door(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal disabled
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is None:  # nothing was compiled
            return function(*args, **kwargs)
        if disabled is None:
            disabled = dynamo.disable(function)
        return disabled(*args, **kwargs)

    door._torchdynamo_disable = True  # type: ignore[attr-defined]
    return door


def untapped_parts(root: nn.Module, tapped: Collection[str], name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the largest parts of a model that hold no tapped layer; a tapped layer itself is one.

    Args:
        root: The model.
        tapped: Names of the tapped layers.
        name: Its own name.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        >>> [name for name, _ in untapped_parts(net, ["0.0"])]
        ['0.0', '0.1', '1']
    """
    prefix = f"{name}." if name else ""
    if isinstance(root, nn.ModuleList | nn.ModuleDict) or any(one != name and one.startswith(prefix) for one in tapped):
        for child, module in root.named_children():
            yield from untapped_parts(module, tapped, f"{prefix}{child}")
    else:
        yield name, root


def compiler_of(model: nn.Module) -> Callable[[Callable[..., Any]], Callable[..., Any]] | None:
    """Return what compiles a callable as a model is compiled: with its backend and its options; None if unknown.

    Args:
        model: What `torch.compile(module)` returned, or a module whose `compile` was called.
    """
    context = getattr(model, "dynamo_ctx", None)
    if context is None:  # module.compile() keeps it in the closure of the call
        call = model.__dict__.get("_compiled_call_impl")
        names, cells = getattr(getattr(call, "__code__", None), "co_freevars", ()), getattr(call, "__closure__", None)
        context = {name: cell.cell_contents for name, cell in zip(names, cells or (), strict=True)}.get("self")
    return context if is_compiled(model) and callable(context) else None


def compile_as(module: nn.Module, compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Compile the calls of a module, if they aren't compiled, as `module.compile()` does.

    Unlike there, each module has a piece of code of its own: the compiler gives up on one after compiling it eight
    times, and calls of all modules are the same one.
    """
    if is_compiled(module):
        return
    kind: Any = type(module)
    function = kind._call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(module, *args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=f"call_{kind.__name__}")
    module._compiled_call_impl = compiler(call)


def gradients_twice() -> AbstractContextManager[Any]:
    """Return a context in which what is compiled may be differentiated more than once, as a saliency asks for.

    Compiled code overwrites tensors of the forward pass in its backward pass otherwise. What was compiled outside of
    it keeps doing so.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    config: Any = __import__("torch._functorch.config", fromlist=["config"])
    return config.patch(donated_buffer=False) if hasattr(config, "donated_buffer") else nullcontext()
