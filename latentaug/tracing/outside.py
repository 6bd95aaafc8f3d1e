"""Random generators that code draws from without holding them: globals of a model's code, and what closures keep."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, TypeAlias, TypeGuard
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

Generator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
"""A random generator of any library."""
OTHERS = {"torch", "numpy", "builtins", "latentaug", "collections", "functools", "typing", "types", "inspect"}
"""Packages whose code and objects are none that a model's authors have written to keep something."""
_WITH_PARTS = {"builtins", "types", "functools", "collections", "argparse"}
"""Modules of Python whose objects hold those of others."""
_MANY = 500  # functions of a class, and those that they call, that are looked into

_READS: WeakKeyDictionary[type, list[Callable[[], Any]]] = WeakKeyDictionary()


def generators_outside(reader: object) -> list[Any]:
    """Return the random generators that a module, or a function, and functions that it calls, read from elsewhere.

    The methods are those by which others call a module, or read a data set. Where the names are is looked up once for
    each class, what they stand for each time.

    Example:
        >>> own = random.Random(0)
        >>> class Dropping(nn.Module):
        ...     __module__ = "mine"
        ...
        ...     def forward(self, x):
        ...         return x * (own.random() > 0.5)
        >>> generators_outside(Dropping()) == [own]
        True
    """
    if isinstance(reader, FunctionType):  # not kept: what a function closes over may hold the function
        return _generators_in(read() for read in _reads_of(reader))
    kind = type(reader)
    if kind not in _READS:
        _READS[kind] = list(_reads_of(kind))
    return _generators_in(read() for read in _READS[kind])


def generators_of_hook(hook: object) -> list[Any]:
    """Return the random generators that a hook of the model's authors holds, or reads from elsewhere.

    Example:
        >>> own = random.Random(0)
        >>> def noise(module, images, own):
        ...     return (images[0] * own.random(),)
        >>> generators_of_hook(partial(noise, own=own)) == [own]
        True
    """
    held: list[Any] = []
    while isinstance(hook, partial):
        held += (*hook.args, *hook.keywords.values())
        hook = hook.func
    if isinstance(hook, MethodType):
        held += _attributes(hook.__self__)
        hook = hook.__func__
    held += generators_outside(hook) if isinstance(hook, FunctionType) else _attributes(hook)
    return _generators_in(held)


def _generators_in(values: Iterable[Any]) -> list[Any]:
    """Return the generators among values, each once, but for the global one."""
    found = {id(value): value for value in values if has_state(value) and value is not torch.default_generator}
    return [*found.values()]


def _attributes(owner: object) -> list[Any]:
    theirs = _is_of_the_model(type(owner).__module__)
    return [*getattr(owner, "__dict__", {}).values(), *generators_outside(owner)] if theirs else []


def has_state(value: object) -> TypeGuard[Generator]:
    """Tell whether an object is a random generator with a state, which the system's own lacks."""
    return isinstance(value, Generator) and not isinstance(value, random.SystemRandom)


def read_by(function: FunctionType) -> Iterator[Any]:
    """Yield what a function reads from its module, from others, and from around it; of one of a library, nothing.

    Example:
        >>> own = random.Random(0)
        >>> def noise():
        ...     return own.random()
        >>> noise.__module__ = "mine"
        >>> own in read_by(noise)
        True
    """
    if _is_of_the_model(function.__module__):
        yield from (value for value, _ in _values_in(function))


def is_of_the_system(value: object) -> bool:
    """Tell whether an object is of Python's own library, and no function, method or namespace.

    Example:
        >>> import logging
        >>> is_of_the_system(logging.getLogger()), is_of_the_system(SimpleNamespace(a=1)), is_of_the_system(len)
        (True, False, False)
    """
    package = _package(type(value).__module__)
    return package in sys.stdlib_module_names and package not in _WITH_PARTS


def _reads_of(kind: type | FunctionType) -> Iterator[Callable[[], Any]]:
    waiting = [*_methods(kind, {"forward", "__call__", "__getitem__", "__iter__"})]
    for function in waiting:  # which grows meanwhile
        called = [*_methods(kind, _names_in(function))]
        for value, read in _values_in(function):
            if isinstance(value, Generator):
                yield read
            elif isinstance(value, FunctionType):
                called.append(value)
        for one in called:
            if one not in waiting and len(waiting) < _MANY and _is_of_the_model(one.__module__):
                waiting.append(one)


def _methods(kind: type | FunctionType, names: set[str]) -> Iterator[FunctionType]:
    """Yield the methods and properties of some names that are the model's authors' own; of a function, itself."""
    if isinstance(kind, FunctionType):
        yield from [kind] if _is_of_the_model(kind.__module__) else []
        return
    for parent in kind.__mro__:
        if _is_of_the_model(parent.__module__):
            for name in sorted(names & vars(parent).keys()):
                yield from _functions_in(vars(parent)[name])


def _is_of_the_model(module: str | None) -> bool:
    package = _package(module)
    return package not in OTHERS and package not in sys.stdlib_module_names


def _functions_in(value: Any) -> list[FunctionType]:
    parts = [value, getattr(value, "__func__", None), getattr(value, "fget", None), getattr(value, "__wrapped__", None)]
    return [part for part in parts if isinstance(part, FunctionType)]


def _values_in(function: FunctionType) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """Yield what a function reads from its module, from others, from objects there and from around it, and how."""
    names = _names_in(function)
    for cell in function.__closure__ or ():
        try:
            yield from _with_parts(cell.cell_contents, partial(getattr, cell, "cell_contents", None), names)
        except ValueError:  # an empty one
            continue
    for name in sorted(names & function.__globals__.keys()):
        yield from _with_parts(function.__globals__[name], partial(function.__globals__.get, name), names)


def _with_parts(value: Any, read: Callable[[], Any], names: set[str]) -> Iterator[tuple[Any, Callable[[], Any]]]:
    yield value, read
    package = value.__name__ if isinstance(value, ModuleType) else type(value).__module__
    theirs = not (_is_of_the_model(package) or isinstance(value, SimpleNamespace))
    if theirs or isinstance(value, type | FunctionType | nn.Module | Generator):
        return
    for name in sorted(names & getattr(value, "__dict__", {}).keys()):
        yield vars(value)[name], partial(_part, read, name)


def _part(read: Callable[[], Any], name: str) -> Any:
    return getattr(read(), name, None)


def _names_in(function: FunctionType) -> set[str]:
    return {name for code in _codes_in(function.__code__) for name in code.co_names}


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)


def _package(name: str | None) -> str:
    return (name or "").partition(".")[0]
