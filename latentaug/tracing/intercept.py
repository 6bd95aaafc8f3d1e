"""Stand in for `module.forward`, in the module's own `__dict__`.

Forward hooks would not do: they are not run where code calls `.forward()` directly, cannot keep a module from running,
and compiled models ignore late ones.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

Handler: TypeAlias = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


_ABSENT = object()


class Override:
    """Callable that stands in for one module's `forward` while a pass is watched or replayed."""

    def __init__(self, name: str, original: Callable[..., Any], handler: Handler):
        self.name = name
        self.handler = handler
        self.original = original
        functools.update_wrapper(self, original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the call over."""
        return self.handler(self.name, self.original, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise RuntimeError(_LIVE.format("copied"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(_LIVE.format("pickled"))


_LIVE = (
    "A model cannot be {} while a LatentTap is open on it: the copy would call back into this model. "
    "Leave the `with LatentTap(...)` block first."
)


@contextmanager
def overridden(modules: Mapping[str, nn.Module], handler: Handler) -> Iterator[None]:
    """Send every forward of `modules` to `handler(name, original, args, kwargs)`; restore what stood there, always.

    Compiled modules keep their graphs, except the model itself and those that hold another one to stand in for.
    """
    watched = set(modules.values())
    saved: list[tuple[dict[str, Any], str, Any]] = []

    def put(module: nn.Module, key: str, value: Any) -> None:
        saved.append((module.__dict__, key, module.__dict__.get(key, _ABSENT)))
        module.__dict__[key] = value

    try:
        for name, module in modules.items():
            compiled = module.__dict__.get("_compiled_call_impl")  # module.compile(): calls bypass forward
            if name and is_compiled(module) and not any(inner in watched for inner in _inside(module)):
                key, original = ("forward", module.forward) if compiled is None else ("_compiled_call_impl", compiled)
                put(module, key, Override(name, original, handler))
                continue
            put(module, "forward", Override(name, _eager_forward(module), handler))
            if compiled is not None:
                put(module, "_compiled_call_impl", None)
        yield
    finally:
        for attributes, key, value in reversed(saved):
            value = living(value)
            if value is _ABSENT:
                attributes.pop(key, None)
            else:
                attributes[key] = value


class StandIn:
    """Callable that stands in for one module's `forward` for as long as somebody wants, in any order with others.

    It stays behind when the module is copied or pickled: a copy is plain.
    """

    def __init__(
        self, name: str, module: nn.Module, key: str, original: Callable[..., Any], handler: Handler, before: Any
    ):
        self.name = name
        self.module = weakref.ref(module)
        self.key = key
        self.original = original
        self.handler: Handler | None = handler
        self.before = before  # what stood there
        functools.update_wrapper(self, original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Hand the call over, if that is still wanted."""
        if self.handler is None:
            return self.original(*args, **kwargs)
        return self.handler(self.name, self.original, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.original, memo)

    def __reduce__(self) -> Any:
        module = self.module()
        if getattr(self.original, "__self__", None) is module:
            return getattr, (module, "forward")
        return functools.partial, (self.original,)

    def remove(self) -> None:
        """Take it out; where something else stands in front of it, that finds what stood there before."""
        self.handler = None
        module = self.module()
        if module is None or module.__dict__.get(self.key) is not self:
            return
        value = living(self)
        if value is _ABSENT:
            module.__dict__.pop(self.key, None)
        else:
            module.__dict__[self.key] = value


def living(value: Any) -> Any:
    """Return what a stand-in that is no longer wanted was put in place of."""
    while isinstance(value, StandIn) and value.handler is None:
        value = value.before
    return value


def stand_in(modules: Mapping[str, nn.Module], handler: Handler) -> Callable[[], None]:
    """Send every forward of `modules` to a handler, as `overridden` does; return what ends that, in any order."""
    watched = set(modules.values())
    placed: list[StandIn] = []

    def put(name: str, module: nn.Module, key: str, original: Callable[..., Any], handler: Handler) -> None:
        placed.append(StandIn(name, module, key, original, handler, module.__dict__.get(key, _ABSENT)))
        module.__dict__[key] = placed[-1]

    for name, module in modules.items():
        compiled = module.__dict__.get("_compiled_call_impl")
        if name and is_compiled(module) and not any(inner in watched for inner in _inside(module)):
            key, original = ("forward", module.forward) if compiled is None else ("_compiled_call_impl", compiled)
            put(name, module, key, original, handler)
            continue
        put(name, module, "forward", _eager_forward(module), handler)
        if compiled is not None:
            put(name, module, "_compiled_call_impl", module._call_impl, _uncompiled)

    def remove() -> None:
        for one in reversed(placed):
            one.remove()

    return remove


def _uncompiled(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return original(*args, **kwargs)


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    return (inner for inner in module.modules() if inner is not module)


def _eager_forward(module: nn.Module) -> Callable[..., Any]:
    original = getattr(module, "_orig_mod", None)
    if isinstance(original, nn.Module) and is_compiled(module):
        return original.__call__  # compiled code would not see what stands in for the modules inside it
    return module.forward


def is_compiled(module: nn.Module) -> bool:
    """Tell whether `torch.compile(module)` or `module.compile()` made it."""
    return type(module).__name__ == "OptimizedModule" or module.__dict__.get("_compiled_call_impl") is not None


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
