"""Change all that was computed before a moment of a pass and is read after it, as mixing samples must.

A decoder reads more than the code: skip connections, the image, positions. Those who mix samples at the code mix these
too. What comes of the inputs is followed up to the moment; what is read of it afterwards is read changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from latentaug.tracing.intercept import is_compiled
from latentaug.tracing.isolation import submodules
from latentaug.tracing.tree import is_differentiable, map_tensors, storage_of, tensors_in


@runtime_checkable
class WholePassChange(Protocol):
    """What a change must offer to be made in a whole pass."""

    @property
    def whole_pass(self) -> bool:
        """Whether it is one."""

    def apply(self, code: Tensor) -> Tensor:
        """Return a changed tensor whose first axis is the batch."""


class ChangedReads:
    """The tensors of one pass that come of its inputs, and how they are read once the moment has come.

    Args:
        model: The model whose pass it is.
        grad: Whether gradients are to reach what is read.
    """

    def __init__(self, model: nn.Module, *, grad: bool) -> None:
        if any(map(is_compiled, submodules(model))):
            raise RuntimeError(
                f"{type(model).__name__} has compiled parts, which do not show what they read, so that a transform "
                "that changes a whole pass cannot follow. Compile it later, or use a transform of the code alone."
            )
        self._model = type(model).__name__
        self._grad = grad
        self._change: WholePassChange | None = None
        self._batch = 0
        self._early: dict[int, Tensor] = {}  # kept, so that nothing else takes the identity of one
        self._storages: set[int] = set()
        self._changed: dict[int, Tensor] = {}
        self._ours = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow what is computed, and change what is read, for as long as the context lasts."""
        with _Reads(self), _Guard(self):
            yield

    def add(self, tree: Any) -> None:
        """Follow these tensors."""
        for _, tensor in tensors_in(tree):
            self._early[id(tensor)] = tensor
            self._storages.add(storage_of(tensor))

    def begin(self, change: WholePassChange, batch: int) -> None:
        """From now on, let everything that was followed be read changed."""
        if self._change is not None:
            raise RuntimeError(
                "A pass can be changed as a whole at one layer only. Leave one of the transforms that mix samples out."
            )
        self._change, self._batch = change, batch

    @property
    def begun(self) -> bool:
        """Whether the moment has come."""
        return self._change is not None

    def read(self, tensor: Tensor) -> Tensor:
        """Return what is read in place of a tensor: if it came before the moment, its changed form."""
        if self._change is None or id(tensor) not in self._early or not (is_differentiable(tensor) and tensor.ndim):
            return tensor
        if id(tensor) not in self._changed:
            self._check(tensor)
            self._ours = True
            try:
                self._changed[id(tensor)] = self._change.apply(tensor)
            finally:
                self._ours = False
        return self._changed[id(tensor)]

    def follow(self, given: Any, result: Any) -> None:
        """Note a result that comes of what is followed."""
        if self._change is None and any(id(tensor) in self._early for _, tensor in tensors_in(given)):
            self.add(result)

    def guard(self, given: Any, result: Any) -> None:
        """See that nothing reads what is followed, below the level where reads are changed."""
        if self._ours or not any(storage_of(tensor) in self._storages for _, tensor in tensors_in(given)):
            return
        if self._change is None:
            self._storages.update(storage_of(tensor) for _, tensor in tensors_in(result))
            return
        raise RuntimeError(
            f"{self._model} reads what was computed before the code in a way that cannot be followed, such as a "
            "scripted module, so that a transform that changes a whole pass would not reach it. Use a transform of "
            "the code alone."
        )

    def _check(self, tensor: Tensor) -> None:
        if tensor.shape[0] != self._batch:
            raise RuntimeError(
                f"{self._model} reads, after the code, a tensor of shape {tuple(tensor.shape)} from before it, whose "
                f"first axis is not the batch of {self._batch}: samples in it cannot be mixed. Tap another layer, or "
                "use a transform of the code alone."
            )
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        checkpointed = hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"
        if self._grad and (checkpointed or not torch.is_grad_enabled()):
            raise RuntimeError(
                f"{self._model} reads what was computed before the code in a part that is checkpointed, or runs "
                "without gradients: its backward pass would not see the change. Use a transform of the code alone, or "
                "leave activation checkpointing."
            )


_SHAPES = {"size", "dim", "stride", "numel", "element_size", "is_floating_point", "is_contiguous", "__len__"}


class _Reads(TorchFunctionMode):
    def __init__(self, reads: ChangedReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args, kwargs or {}
        name = getattr(function, "__name__", "")
        if not self._reads.begun or name in _SHAPES:
            result = function(*given[0], **given[1])
            self._reads.follow(given, result)
            return result
        if name == "__get__":  # an attribute: changed only where it is a tensor again
            result = function(*given[0], **given[1])
            if not isinstance(result, Tensor):
                return result
        args, kwargs = map_tensors(given, self._reads.read)
        return function(*args, **kwargs)


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, reads: ChangedReads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reads = reads

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self._reads.guard((args, kwargs), result)
        return result
