"""What a forward pass called, in which order, returning what."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from latentaug.tracing.intercept import is_hooked, overridden, visible_modules
from latentaug.tracing.tree import Path, item_at, map_tensors, storage_of, tensors_in, version_of


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
    hooked: bool = False  # somebody sees what it returns before its caller does
    saving: str = ""  # how autograd saved what it computed, in the words of `saving_now`; told where there are sources
    apart: bool = False  # nothing that it computed, was given or returned comes from the sources of the recorded pass

    @property
    def depth(self) -> int:
        """Within how many other calls this one was made."""
        return 0 if self.parent is None else 1 + self.parent.depth

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


_top_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # from PyTorch 2.8 on
_PROBE = torch.ones((), device="cpu", requires_grad=True)


def saving_now() -> str:
    """Tell how autograd saves what is computed now: "none", "plain", or "packed" by hooks.

    Activation checkpointing packs: it saves nothing, and computes again when the backward pass unpacks. Nothing is
    computed to find out, as that would count among what a checkpointed part saves.

    Example:
        >>> with torch.autograd.graph.save_on_cpu():
        ...     saving_now()
        'packed'
    """
    if not torch.is_grad_enabled():
        return "none"
    if _top_hooks is not None:
        return "plain" if _top_hooks(False) is None else "packed"
    return "packed" if _is_checkpointing() or _is_probe_packed() else "plain"


def _is_checkpointing() -> bool:
    """Tell whether activation checkpointing called us."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def _is_probe_packed() -> bool:
    """Tell whether hooks have packed what is saved of a computation, which is made here."""
    probe: Any = _PROBE.square().grad_fn
    try:
        probe._raw_saved_self.register_hooks(lambda tensor: tensor, lambda tensor: tensor)
    except RuntimeError:  # it has hooks already
        return True
    return False


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

    def _reaches_operation(self, args: Any, kwargs: Any) -> bool:
        """Tell the same of what an operation is given, quickly: tensors, and lists of them."""
        for given in (*args, *kwargs.values()):
            for part in given if isinstance(given, list | tuple) else (given,):
                if isinstance(part, Tensor) and storage_of(part) in self._storages:
                    return True
        return self._steers

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and follow what it makes of followed tensors."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self._reaches_operation(args, kwargs):
            self.add((result, args, kwargs) if function._schema.is_mutable else result)
            # A number or a size that Python sees may decide what is computed next.
            self._steers |= not _TELLING.isdisjoint(function.tags)
        return result


def can_be_watched(tree: Any) -> bool:
    """Tell whether `Spread` can follow these tensors; PyTorch 2.4 makes none of a subclass while it does."""
    try:
        with Spread():
            for _, tensor in tensors_in(tree):
                if type(tensor) not in (Tensor, nn.Parameter):
                    tensor.as_subclass(type(tensor))
    except RuntimeError:
        return False
    return True


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
    modules = visible_modules(model, inside)

    def handle(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        within = weakref.ref(stack[-1]) if stack else None
        call = Call(name, counts[name], within, next(clock), saving=saving_now() if sources else "")
        counts[name] += 1
        (stack[-1].children if stack else roots).append(call)
        watch = InputWatch(args, kwargs)
        call.inputs, call.given = watch.storages(), watch.shapes()
        call.hooked = is_hooked(modules[name], original)
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

    with overridden(modules, handle), spread if sources else nullcontext():
        result = run()
    root = next((call for call in roots if call.name == ""), None)
    if root is None:
        raise RuntimeError(f"{type(model).__name__} was not called in the pass to record.")
    return root, result
