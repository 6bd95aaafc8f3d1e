"""What a forward pass called, in which order, returning what: the recorder that discovery and tap share.

Calls are seen by standing in for `module.forward` in the module's own `__dict__`. Forward hooks would not do: they are
not run where code calls `.forward()` directly, cannot keep a module from running, and compiled models ignore late ones.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Path: TypeAlias = tuple[Any, ...]
Handler: TypeAlias = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_ABSENT = object()


# Trees: what models take and return -------------------------------------------------------------------------------


def children_of(tree: Any) -> Iterable[tuple[Any, Any]]:
    """Return (key, child) of each part of a container that models return; nothing for a leaf."""
    if isinstance(tree, list | tuple):
        return enumerate(tree)
    if isinstance(tree, Mapping):
        return tree.items()
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if hasattr(tree, f.name)]
    return ()


def tensors_in(tree: Any, path: Path = ()) -> list[tuple[Path, Tensor]]:
    """Return (path, tensor) for every tensor in nested lists, tuples, mappings and dataclasses, in order."""
    if isinstance(tree, Tensor):
        return [(path, tree)]
    return [found for key, child in children_of(tree) for found in tensors_in(child, (*path, key))]


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of `tree`, containers of the same types, with `function` applied to every tensor.

    A tensor that stands in several places is one tensor in the result too.

    Example:
        >>> map_tensors({"out": [torch.ones(1), None]}, lambda t: t + 1)
        {'out': [tensor([2.]), None]}
    """
    return _mapped(tree, function, {})


def _mapped(node: Any, function: Callable[[Tensor], Tensor], done: dict[int, Tensor]) -> Any:
    if isinstance(node, Tensor):
        if id(node) not in done:
            done[id(node)] = function(node)
        return done[id(node)]
    children = [(key, _mapped(child, function, done)) for key, child in children_of(node)]
    if isinstance(node, tuple):
        values = [child for _, child in children]
        return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)
    if not children:
        return copy.copy(node) if isinstance(node, list | dict) else node
    result = copy.copy(node)
    for key, child in children:
        if isinstance(node, list | Mapping):
            result[key] = child
        else:
            object.__setattr__(result, key, child)
    return result


def item_at(tree: Any, path: Path) -> Any:
    """Follow `path` into `tree`: keys of mappings, positions of sequences, fields of dataclasses."""
    for key in path:
        tree = tree[key] if isinstance(tree, list | tuple | Mapping) else getattr(tree, key)
    return tree


def is_differentiable(tensor: Tensor) -> bool:
    """Tell whether the tensor's type is one that gradients exist for."""
    return tensor.is_floating_point() or tensor.is_complex()


def version_of(tensor: Tensor) -> int | None:
    """Count of in-place changes so far; None for inference tensors, which keep no count."""
    return None if tensor.is_inference() else tensor._version


def storage_of(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor; views of one tensor share it."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without one storage
        return id(tensor)


def ancestors(nodes: Iterable[Any]) -> set[Any]:
    """Collect autograd nodes and every node that they depend on."""
    stack, seen = list(nodes), set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return seen


def depends(result: Tensor, source: Tensor) -> bool:
    """Tell whether `source` has a part in the graph of `result`."""
    nodes = ancestors([result.grad_fn])
    if source.grad_fn is not None:
        return source.grad_fn in nodes
    return any(getattr(node, "variable", None) is source for node in nodes)


# Standing in for forward ------------------------------------------------------------------------------------------


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
            if value is _ABSENT:
                attributes.pop(key, None)
            else:
                attributes[key] = value


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


# Recording --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Call:
    """One call of one module in a recorded pass."""

    name: str
    number: int
    within: weakref.ref[Call] | None  # weak: a cycle would keep all activations until the next garbage collection
    start: int
    finish: int = -1
    children: list[Call] = field(default_factory=list)
    output: Any = None
    tensors: list[tuple[Path, Tensor]] = field(default_factory=list)
    versions: list[int | None] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)  # autograd node of each tensor, before anything changed it in place
    given: list[tuple[int, ...]] = field(default_factory=list)  # shapes of the input tensors
    inputs: frozenset[int] = frozenset()
    impure: bool = False
    apart: bool = False  # nothing that it computed, was given or returned comes from the sources of the recorded pass

    @property
    def parent(self) -> Call | None:
        """The call that this one was made in, while somebody holds the tree."""
        return None if self.within is None else self.within()

    @property
    def key(self) -> tuple[str, int]:
        """Module name and call number: what tells this call from all others of the pass."""
        return self.name, self.number

    def moved(self) -> list[Tensor]:
        """Tensors of the output that were changed in place after this call returned them."""
        return [t for (_, t), version in zip(self.tensors, self.versions, strict=True) if version_of(t) != version]

    def walk(self) -> Iterator[Call]:
        """Yield this call and all calls made inside it, in order of their start."""
        yield self
        for child in self.children:
            yield from child.walk()


class InputWatch:
    """Notices whether a call changed what it was given: tensors in place, or the contents of a list or dict."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._given = (args, kwargs)
        self._tensors = tensors_in(self._given)
        self._versions = [version_of(tensor) for _, tensor in self._tensors]

    def changed(self) -> bool:
        """Tell whether anything moved since construction."""
        now = tensors_in(self._given)
        return (
            len(now) != len(self._tensors)
            or any(a[0] != b[0] or a[1] is not b[1] for a, b in zip(now, self._tensors, strict=True))
            or self._versions != [version_of(tensor) for _, tensor in now]
        )

    def storages(self) -> frozenset[int]:
        """Identities of the memory behind the inputs."""
        return frozenset(storage_of(tensor) for _, tensor in tensors_in(self._given))

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the inputs."""
        return [tuple(tensor.shape) for _, tensor in tensors_in(self._given)]


class Spread(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what comes of some tensors, operation by operation: also through views, in place and without a graph."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0  # how many were given something that comes of the sources
        self._storages: dict[int, Tensor] = {}  # kept, so that no other memory takes the identity of one
        self._steers = False

    def add(self, tree: Any) -> None:
        """Follow these tensors too."""
        self.operations += 1
        self._storages.update((storage_of(tensor), tensor) for _, tensor in tensors_in(tree))

    def reaches(self, tree: Any) -> bool:
        """Tell whether anything in it comes of the sources, or may have been chosen by them."""
        return self._steers or any(storage_of(tensor) in self._storages for _, tensor in tensors_in(tree))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and follow what it makes of followed tensors."""
        result = function(*args, **(kwargs or {}))
        if self.reaches((args, kwargs)):
            self.add((result, args, kwargs) if function._schema.is_mutable else result)
            # A number or a size that Python sees may decide what is computed next.
            self._steers |= not _TELLING.isdisjoint(function.tags)
        return result


_TELLING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def record(
    model: nn.Module,
    run: Callable[[], Any],
    *,
    inside: frozenset[str] | None = None,
    sources: Collection[tuple[str, Path]] = (),
) -> tuple[Call, Any]:
    """Run a pass of `model` and return the tree of its calls, with what the pass returned.

    Args:
        model: The model that `run` calls once.
        run: Performs the pass.
        inside: Names of submodules that must be seen, so that only those compiled ones that hold them run uncompiled.
            Default: all must be.
        sources: Names of submodules with paths into what they return, of tensors whose spread is to be followed.

    Raises:
        RuntimeError: `run` did not call the model.
    """
    counts: Counter[str] = Counter()
    stack: list[Call] = []
    roots: list[Call] = []
    clock = iter(range(2**62))
    spread = Spread()

    def handle(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(name, counts[name], weakref.ref(stack[-1]) if stack else None, next(clock))
        counts[name] += 1
        (stack[-1].children if stack else roots).append(call)
        watch = InputWatch(args, kwargs)
        call.inputs, call.given = watch.storages(), watch.shapes()
        stack.append(call)
        before = spread.operations
        try:
            output = original(*args, **kwargs)
        finally:
            stack.pop()
        call.finish = next(clock)
        call.impure = watch.changed()
        call.output = map_tensors(output, lambda tensor: tensor)
        call.tensors = tensors_in(output)
        call.versions = [version_of(tensor) for _, tensor in call.tensors]
        call.nodes = [tensor.grad_fn for _, tensor in call.tensors]
        if spread.reaches((args, kwargs)):
            spread.add(output)  # also what was computed by other means than operations of torch
        for path in (path for source, path in sources if source == name):
            spread.add(item_at(output, path))
        call.apart = spread.operations == before
        return output

    with overridden(visible_modules(model, inside), handle), spread if sources else nullcontext():
        result = run()
    root = next((call for call in roots if call.name == ""), None)
    if root is None:
        raise RuntimeError(f"{type(model).__name__} was not called in the pass to record.")
    return root, result
