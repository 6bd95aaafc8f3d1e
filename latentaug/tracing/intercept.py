"""Stand in for `module.forward`, in the module's own `__dict__`.

Forward hooks would not do: they are not run where code calls `.forward()` directly, cannot keep a module from running,
and compiled models ignore late ones.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeAlias

import torch
from torch import nn

from latentaug.tracing.slots import ABSENT

Handler: TypeAlias = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Override:
    """Callable that stands in for one module's `forward` while a pass is watched or replayed."""

    def __init__(self, name: str, original: Callable[..., Any], handler: Handler, before: Any = ABSENT):
        self.name = name
        self.handler: Handler | None = handler
        self.original = original
        self.before = before  # what stood in its place
        self.thread = threading.get_ident()
        functools.update_wrapper(self, original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the call over; but for calls of other threads, which are none of ours."""
        if torch.compiler.is_compiling():  # traced as part of something compiled, which must not see the handler
            return import_module("torch._dynamo").disable(self.hand_over)(*args, **kwargs)
        if self.handler is not None and _is_traced():
            raise RuntimeError(LIVE.format("traced"))
        return self.hand_over(*args, **kwargs)

    def hand_over(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the call over."""
        if self.handler is None or self.thread != threading.get_ident():
            return self.original(*args, **kwargs)
        return self.handler(self.name, self.original, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """Say why there is no code to read for who scripts or exports a model."""
        raise AttributeError(LIVE.format("scripted or exported") if name in _OF_CODE else name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise RuntimeError(LIVE.format("copied"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(LIVE.format("pickled"))


def _is_traced() -> bool:
    """Tell whether `torch.jit.trace` records what is computed, as exports of the older kind do too."""
    jit: Any = torch.jit  # which has no types
    return bool(jit.is_tracing())


_OF_CODE = ("__code__", "__globals__")


LIVE = (
    "A model cannot be {} while a LatentTap is open on it: the copy would call back into this model. "
    "Leave the `with LatentTap(...)` block first."
)


_SCRIPTED = (
    "A model cannot be scripted while it is augmented, or a SaliencyCalculator is attached to it. Leave `augmented`, "
    "or remove the calculator, first."
)


class StandIn(Override):
    """Callable that stands in for one module's `forward` for as long as somebody wants.

    It stays behind when the module is copied, pickled or traced: a copy is plain. Where the model is compiled
    afterwards, what it does, with all that it calls, runs uncompiled.
    """

    _torchdynamo_disable = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the call over."""
        if _is_traced():
            return self._plain()(*args, **kwargs)
        dynamo = sys.modules.get("torch._dynamo")  # importing it takes a second
        call = self.hand_over
        return call(*args, **kwargs) if dynamo is None else dynamo.disable(call)(*args, **kwargs)

    def hand_over(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the call over, whatever the thread: checkpointing computes again in threads of its own."""
        if self.handler is None:
            return self.original(*args, **kwargs)
        return self.handler(self.name, self.original, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._plain(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = self._plain()
        owner, function = (getattr(plain, name, None) for name in ("__self__", "__func__"))
        if function is not None and function is getattr(type(owner), "forward", None):
            return getattr, (owner, "forward")
        return functools.partial, (plain,)

    def __getattr__(self, name: str) -> Any:
        """Return the code that is exported; say why there is none to be scripted."""
        if name == "__code__":
            plain = self._plain()
            return getattr(plain, "__func__", plain).__code__
        raise AttributeError(_SCRIPTED if name == "__globals__" else name)

    def _plain(self) -> Any:
        """Return what would stand here if nothing stood in for it."""
        original = self.original
        while isinstance(original, StandIn):
            original = original.original
        return original


@contextmanager
def overridden(modules: Mapping[str, nn.Module], handler: Handler) -> Iterator[None]:
    """Send every forward of `modules` to `handler(name, original, args, kwargs)`; restore what stood there, always.

    Compiled modules keep their graphs, except the model itself and those that hold another one to stand in for.
    """
    placed: _Placed = []
    try:
        _place(modules, handler, Override, placed)
        yield
    finally:
        _remove(placed)


def stand_in(
    modules: Mapping[str, nn.Module], handler: Handler, announce: Callable[[Callable[[], None]], None] | None = None
) -> Callable[[], None]:
    """Send every forward of `modules` to a handler, as `overridden` does; return what ends that.

    Those that stand in for the same module may leave in any order.

    Args:
        modules: What to stand in for, by names.
        handler: Is called in their place.
        announce: Is told what ends it before anything is done, so that Ctrl-C never comes before that is known.
    """
    placed: _Placed = []
    if announce is not None:
        announce(functools.partial(_remove, placed))
    try:
        _place(modules, handler, StandIn, placed)
    except BaseException:
        _remove(placed)
        raise
    return functools.partial(_remove, placed)


_Placed: TypeAlias = list[tuple[dict[str, Any], str, Override]]
"""Where something stands in for what: attributes of a module, the name of one, and what stands there."""


def _remove(placed: _Placed) -> None:
    """Put back what stood there before, all of it, also where Ctrl-C comes in between."""
    try:
        while placed:
            _withdraw(*placed[-1])
            placed.pop()
    except KeyboardInterrupt:
        _remove(placed)
        raise


def _place(modules: Mapping[str, nn.Module], handler: Handler, kind: type[Override], placed: _Placed) -> None:
    watched = set(modules.values())

    def put(name: str, module: nn.Module, key: str, original: Callable[..., Any], handler: Handler) -> None:
        attributes = module.__dict__
        placed.append((attributes, key, kind(name, original, handler, attributes.get(key, ABSENT))))
        attributes[key] = placed[-1][2]

    for name, module in modules.items():
        compiled = module.__dict__.get("_compiled_call_impl")  # module.compile(): calls bypass forward
        if name and is_compiled(module) and not any(inner in watched for inner in _inside(module)):
            key, original = ("forward", module.forward) if compiled is None else ("_compiled_call_impl", compiled)
            put(name, module, key, original, handler)
            continue
        put(name, module, "forward", _eager_forward(module), handler)
        if compiled is not None:
            put(name, module, "_compiled_call_impl", module._call_impl, _uncompiled)


def _withdraw(attributes: dict[str, Any], key: str, one: Override) -> None:
    """Put back what stood in the place of `one`, also where others stand in front of it."""
    one.handler = None
    front = attributes.get(key)
    if front is one:
        if one.before is ABSENT:
            del attributes[key]
        else:
            attributes[key] = one.before
        return
    while isinstance(front, Override):
        if front.before is one:
            front.before = one.before
            if front.original is one:
                front.original = one.original
                functools.update_wrapper(front, one.original, updated=())
            return
        front = front.before


def _uncompiled(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return original(*args, **kwargs)


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    return (inner for inner in module.modules() if inner is not module)


def _eager_forward(module: nn.Module) -> Callable[..., Any]:
    original = getattr(module, "_orig_mod", None)
    if isinstance(original, nn.Module) and is_compiled(module):
        return original.__call__  # compiled code would not see what stands in for the modules inside it
    forward: Callable[..., Any] = module.forward
    # model.forward = torch.compile(model.forward)
    return getattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable", forward)


def is_compiled(module: nn.Module) -> bool:
    """Tell whether `torch.compile(module)` or `module.compile()` made it."""
    if type(module).__name__ == "OptimizedModule":
        return True
    compiled = module.__dict__.get("_compiled_call_impl")
    return compiled is not None and not (isinstance(compiled, Override) and compiled.handler is _uncompiled)


def is_hooked(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Tell whether what `forward` returns is seen before the caller of the module sees it.

    Hooks of the module see it, and a function that was put in the place of its own `forward` does.
    """
    while isinstance(forward, Override):
        forward = forward.original
    return bool(module._forward_hooks) or getattr(forward, "__func__", None) is not getattr(
        type(module), "forward", None
    )


def visible_modules(model: nn.Module, inside: frozenset[str] | None = None) -> dict[str, nn.Module]:
    """Name every submodule whose calls Python sees, the model itself under "".

    Scripted submodules are one block each; compiled ones too if `inside` is given and no name in it lies in them.
    """
    found: dict[str, nn.Module] = {}
    opaque: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in opaque):
            continue
        found[name] = module
        prefix = f"{name}."
        compiled = inside is not None and is_compiled(module)
        if isinstance(module, torch.jit.ScriptModule) or (
            name and compiled and not any(wanted.startswith(prefix) for wanted in inside or ())
        ):
            opaque.append(prefix)
    return found
