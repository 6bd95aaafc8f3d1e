"""What a model keeps beside weights and buffers: tensors, numbers, containers and objects held on its modules."""

from __future__ import annotations

import dataclasses
import pickle
import random
from collections import UserDict, UserList, deque
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from latentaug.tracing.intercept import Override
from latentaug.tracing.outside import OTHERS, Generator, generators_of_hook, generators_outside
from latentaug.tracing.slots import ABSENT, Slot, slots_of
from latentaug.tracing.tree import copied, map_tensors, storage_of, tensors_in, version_of

_OWN = vars(nn.Module()).keys()
_OURS = {"forward", "_compiled_call_impl", "__reduce_ex__"}  # where we stand in for something


_ATOMS = {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.Size, slice}


_KEEPERS = (UserDict, UserList, WeakKeyDictionary, WeakValueDictionary)  # which keep what they hold in attributes


_FEW = 4096  # elements of a tensor that is copied in passing


def is_large(tensor: Tensor) -> bool:
    """Tell whether a tensor is none of those that are copied in passing: it has many elements, or a graph."""
    return tensor.numel() > _FEW or tensor.grad_fn is not None


def _same(old: Any, new: Any) -> bool:
    return old is new or (type(old) is type(new) and type(old) in _ATOMS and bool(old == new))


def _like(old: Collection[Any], new: Collection[Any]) -> bool:
    return len(old) == len(new) and all(map(_same, old, new))


class State:
    """What a model keeps beside weights and buffers, at one moment.

    Attributes of modules, with all that lies in containers and in objects of the model's own packages: by reference.
    Of tensors also the values, where asked for. Random generators and arrays too. Names are those of the attributes:
    "encoder.features" stands for all that lies in it.

    Args:
        model: The model.
        copied: Names of attributes whose tensors are copied; None for all.
        left_out: Names of attributes to leave out.
        small: Whether small tensors are copied in any case.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> model[0].passes, model[0].features = 0, [torch.ones(1)]
        >>> state = State(model)
        >>> model[0].passes += 1
        >>> model[0].features.clear()
        >>> sorted(State(model).changed_since(state))
        ['0.features', '0.passes']
        >>> state.give_back()
        >>> model[0].passes, model[0].features
        (0, [tensor([1.])])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        copied: Collection[str] | None = (),
        left_out: Collection[str] = (),
        small: bool = True,
    ) -> None:
        self.attributes: list[tuple[str, dict[str, Any], dict[str, Any]]] = []  # of modules: name, where, what
        self.hidden: list[tuple[str, nn.Module]] = []  # modules that are no submodules, as a teacher in a list
        self._containers: dict[int, tuple[str, Any, Any]] = {}
        self._tensors: dict[int, tuple[str, Tensor, int | None]] = {}
        self._copies: dict[int, Tensor] = {}
        self._graphs: dict[int, tuple[bool, bool]] = {}
        self._streams: dict[tuple[int, str], tuple[str, Any, Any]] = {}  # by each name that they are known by
        self._outside: dict[type, list[Any]] = {}
        self._slotted: dict[tuple[int, str], Slot] = {}
        self._objects: set[str] = set()
        self._copied, self._left_out, self._few = copied, left_out, _FEW if small else -1
        modules = named_modules_of(model)
        self._known = {id(module) for _, module in modules}
        self._packages = {type(module).__module__.partition(".")[0] for _, module in modules} - OTHERS
        self._slots = {id(tensor) for _, module in modules for tensor in module._buffers.values()}
        self._seen: set[int] = set()
        self._modules, self._hooks = modules, _hooks_of(modules)
        for name, module in modules:
            self._add_module(name, module)
        for name, module in modules if self._hooks else ():
            self._add_hooks(f"{name}." if name else "", module)

    # Looking ----------------------------------------------------------------------------------------------------------

    def _add_module(self, path: str, module: nn.Module) -> None:
        attributes = vars(module)
        prefix = f"{path}." if path else ""
        kept: dict[str, Any] = {}
        for key, value in attributes.items():
            if key in _OWN or key in _OURS:
                continue
            if type(value) in _ATOMS and not self._left_out:
                kept[key] = value
                continue
            name = prefix + key
            if name in self._left_out:
                continue
            kept[key] = value
            self._add(name, value)
        self.attributes.append((path, attributes, kept))
        kind = type(module)
        if kind not in self._outside:
            self._outside[kind] = generators_outside(module)
        for number, value in enumerate(self._outside[kind]):
            self._add(f"{prefix}generator outside {number}", value)

    def _add_hooks(self, prefix: str, module: nn.Module) -> None:
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            for number, value in enumerate(generators_of_hook(hook)):
                self._add(f"{prefix}generator {number} of a hook", value)

    def _add(self, name: str, value: Any) -> None:
        kind = type(value)
        if kind in _ATOMS or (id(value) in self._seen and not isinstance(value, Generator)):
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._add_tensor(name, value)
        elif isinstance(value, nn.Module):
            self._add_hidden(name, value)
        elif (stream := stream_of(value)) is not None:
            self._streams[id(value), name] = name, value, stream
        elif isinstance(value, dict | list | set | deque):
            self._containers[id(value)] = name, value, value.copy()
            for part in value.values() if isinstance(value, dict) else value:
                self._add(name, part)
        elif isinstance(value, tuple | frozenset):
            for part in value:
                self._add(name, part)
        elif self._is_of_the_model(value):
            self._objects.add(name)
            for key in slots_of(kind):
                slot = Slot.of(name, value, key)
                self._slotted[id(value), key] = slot
                self._add(name, slot.value)
            if (attributes := getattr(value, "__dict__", None)) is not None:
                self._containers[id(attributes)] = name, attributes, attributes.copy()
                self._seen.add(id(attributes))
                for part in attributes.values():
                    self._add(name, part)

    def _add_tensor(self, name: str, tensor: Tensor) -> None:
        if isinstance(tensor, nn.Parameter) or id(tensor) in self._slots or tensor.is_meta:
            return
        self._tensors[id(tensor)] = name, tensor, version_of(tensor)
        self._graphs[id(tensor)] = tensor.grad_fn is not None, tensor.requires_grad
        if self._copied is None or name in self._copied or tensor.numel() <= self._few:
            self._copies[id(tensor)] = copied(tensor)

    def _add_hidden(self, name: str, module: nn.Module) -> None:
        for path, inner in named_modules_of(module):
            if id(inner) not in self._known:
                whole = f"{name}.{path}" if path else name
                self._known.add(id(inner))
                self.hidden.append((whole, inner))
                self._slots.update(id(tensor) for tensor in inner._buffers.values())
                self._add_module(whole, inner)

    def _is_of_the_model(self, value: Any) -> bool:
        """Tell whether an object is one that the model's authors have written to keep something."""
        kind = type(value)
        if isinstance(value, _KEEPERS):
            return True
        if isinstance(value, type | Override) or not (hasattr(value, "__dict__") or slots_of(kind)):
            return False
        package = kind.__module__.partition(".")[0]
        if kind is SimpleNamespace or package in OTHERS:
            return kind is SimpleNamespace
        return package in self._packages or dataclasses.is_dataclass(kind)

    # Comparing --------------------------------------------------------------------------------------------------------

    def changed_since(self, before: State) -> set[str]:
        """Name the attributes that were set, filled or changed in place since another moment."""
        changed = set()
        known = {id(attributes): kept for _, attributes, kept in before.attributes}
        for path, attributes, kept in self.attributes:
            old = known.get(id(attributes), {})
            for key in kept.keys() | old.keys():
                if not _same(old.get(key, ABSENT), kept.get(key, ABSENT)):
                    changed.add(f"{path}.{key}" if path else key)
        for identity, (name, _, contents) in self._containers.items():
            if identity in before._containers and not _alike(before._containers[identity][2], contents):
                changed.add(name)
        for where, slot in self._slotted.items():
            if where in before._slotted and not _same(before._slotted[where].value, slot.value):
                changed.add(slot.name)
        for identity, (name, tensor, version) in self._tensors.items():
            if identity not in before._tensors:
                continue
            copy = before._copies.get(identity)
            if before._tensors[identity][2] != version or (copy is not None and not _equal(copy, tensor)):
                changed.add(name)
        for known_by, (name, _, stream) in self._streams.items():
            if known_by in before._streams and not _stream_like(before._streams[known_by][2], stream):
                changed.add(name)
        return changed - set(before._left_out)

    def altered(self) -> set[str]:
        """Name attributes whose tensors were changed in place since, and that have no copy."""
        return {
            name
            for key, (name, tensor, version) in self._tensors.items()
            if key not in self._copies and version_of(tensor) != version
        }

    def large(self) -> set[str]:
        """Name attributes that hold large tensors, or such with a graph."""
        return {name for name, tensor, _ in self._tensors.values() if is_large(tensor)}

    def storages(self) -> set[int]:
        """Identify the memory behind the tensors that are kept."""
        return {storage_of(tensor) for _, tensor, _ in self._tensors.values()}

    def owners_of_objects(self, names: Collection[str]) -> set[str]:
        """Name the modules that keep, in one of some attributes, an object or a random generator."""
        sources = self._objects | {name for name, *_ in self._streams.values()}
        return {name.rpartition(".")[0] for name in sources & set(names)}

    def values(self) -> list[Tensor]:
        """Return the copies of tensors, in order."""
        return [*self._copies.values()]

    # Giving back ------------------------------------------------------------------------------------------------------

    def give_back(self, *, values: bool = False) -> None:
        """Let the model keep what it kept at this moment.

        Args:
            values: Whether tensors, the very ones, get the values back that they had; needs copies.
        """
        self._put(lambda tensor: tensor)
        if values:
            for key, (_, tensor, _) in self._tensors.items():
                if key in self._copies:
                    restore(tensor, self._copies[key], *self._graphs[key])

    def lend(self, *, detach: bool = False) -> None:
        """Let the model see what it kept at this moment: tensors that were copied as fresh ones, to be changed."""
        fresh: dict[int, Tensor] = {}

        def one(tensor: Tensor) -> Tensor:
            if id(tensor) not in self._copies:
                return tensor
            if id(tensor) not in fresh:
                copy = self._copies[id(tensor)]
                fresh[id(tensor)] = copy.detach().clone() if detach else copy.clone()
            return fresh[id(tensor)]

        self._put(one)

    def _put(self, function: Callable[[Tensor], Tensor]) -> None:
        def part(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if type(value) is tuple and any(function(tensor) is not tensor for _, tensor in tensors_in(value)):
                return map_tensors(value, function)
            return value

        # A model that has hooked its own parts meanwhile notes that it has: without the note it would do so again.
        hooked = _hooks_of(self._modules) != self._hooks
        for path, attributes, kept in self.attributes:
            prefix = f"{path}." if path else ""
            for key in [key for key in attributes if key not in _OWN and key not in _OURS and key not in kept]:
                noted = hooked and type(attributes[key]) in _ATOMS
                if prefix + key not in self._left_out and not noted:
                    del attributes[key]
            for key, value in kept.items():
                new = value if type(value) in _ATOMS else part(value)
                if attributes.get(key, ABSENT) is not new:
                    attributes[key] = new
        for slot in self._slotted.values():
            slot.put(part(slot.value))
        for _, container, contents in self._containers.values():
            _fill(container, contents, part)
        for _, source, stream in self._streams.values():
            set_stream(source, stream)


def named_modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules in a model by name, each once, the outer ones first: `named_modules()` in a third of the time.

    Scripted ones are left out, as what they keep is out of Python's reach.

    Example:
        >>> [name for name, _ in named_modules_of(nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()))]
        ['', '0', '0.0', '1']
    """
    found: list[tuple[str, nn.Module]] = []
    seen, waiting = set(), [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen or isinstance(module, torch.jit.ScriptModule):
            continue
        seen.add(id(module))
        found.append((path, module))
        for key, child in reversed(module._modules.items()):
            if child is not None:
                waiting.append((f"{path}.{key}" if path else key, child))
    return found


def _hooks_of(modules: Collection[tuple[str, nn.Module]]) -> int:
    """Count the hooks of some modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for _, module in modules)


def _alike(old: Any, new: Any) -> bool:
    if isinstance(old, dict):
        return list(old) == list(new) and all(_same(value, new[key]) for key, value in old.items())
    if isinstance(old, set):
        return len(old) == len(new) and old == new
    return _like(old, new)


def _fill(container: Any, contents: Any, part: Callable[[Any], Any]) -> None:
    """Put contents into a container, if it holds others."""
    if isinstance(container, dict):
        new = {key: part(value) for key, value in contents.items()}
        if list(container) != list(new) or any(container[key] is not value for key, value in new.items()):
            container.clear()
            container.update(new)
    elif isinstance(container, set):
        if container != contents:
            container.clear()
            container.update(contents)
    else:
        values = [part(value) for value in contents]
        if len(container) != len(values) or any(a is not b for a, b in zip(container, values, strict=True)):
            container.clear()
            container.extend(values)


def stream_of(value: Any) -> Any:
    """Return what a random generator, or an array, is at; None for other things."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return None if isinstance(value, random.SystemRandom) else value.getstate()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    return value.copy() if isinstance(value, np.ndarray) else None


def _equal(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and old.dtype == new.dtype and (old.device.type != "cpu" or torch.equal(old, new))


def _stream_like(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return torch.equal(old, new)
    return pickle.dumps(old) == pickle.dumps(new)


def set_stream(source: Any, stream: Any) -> None:
    """Set a random generator, or an array, to what it was at."""
    if isinstance(source, torch.Generator):
        source.set_state(stream)
    elif isinstance(source, random.Random):
        source.setstate(stream)
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = stream
    elif isinstance(source, np.random.RandomState):
        source.set_state(stream)
    elif source.shape == stream.shape and source.flags.writeable:
        source[...] = stream


def restore(tensor: Tensor, copy: Tensor, had_graph: bool = False, required_grad: bool = False) -> None:
    """Give a tensor, the very one, its values back, and take a graph away that it did not have."""
    if not had_graph and tensor.grad_fn is not None:
        tensor.detach_()
    if not had_graph and tensor.requires_grad != required_grad:
        tensor.requires_grad_(required_grad)
    copy = copy.detach()
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if tensor.shape != copy.shape or tensor.dtype != copy.dtype:
            tensor.data = copy.clone()
        elif tensor.device.type != "cpu" or not torch.equal(tensor.detach(), copy):
            tensor.data.copy_(copy)  # without a word to the version counter, as it is as before
