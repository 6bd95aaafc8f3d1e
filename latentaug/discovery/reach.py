"""How much of a model follows from what stands in for a code: all that reads it, or some."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from latentaug.discovery.candidates import Candidate, Look, Seen, results_of
from latentaug.tracing.intercept import overridden, visible_modules
from latentaug.tracing.isolation import preserved_modes, sandbox
from latentaug.tracing.location import device_of
from latentaug.tracing.tree import item_at, map_tensors, storage_of, tensors_in


class Reach(enum.Enum):
    """What follows from a code that a call returns."""

    NOTHING = enum.auto()
    SOME = enum.auto()
    """Others read the code that was returned inside the call, such as hooks."""
    ALL = enum.auto()


def reach(model: nn.Module, candidate: Candidate, look: Look, again: Seen | None, *, watched: bool) -> Reach:
    """Tell whether the output follows from the tensor that a call returns, and is not just that tensor itself.

    Args:
        model: The model.
        candidate: The code, and the call.
        look: The dry run that showed it.
        again: The one at another size.
        watched: Whether to see if anybody reads the code but from the call.
    """
    looked = [look.inputs]
    if again is not None and (candidate.call.key, candidate.path) in again.returned:
        looked.insert(math.prod(again.image) > math.prod(look.image), again.inputs)  # the smaller image first
    seen = (_spread(model, candidate, look, inputs, watched=watched) for inputs in looked)
    return next((how for how in seen if how is not Reach.NOTHING), Reach.NOTHING)


class _Readers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices whether a tensor is read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensor: Tensor | None = None
        self.found = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.tensor is not None and not self.found:
            storage = storage_of(self.tensor)
            self.found = any(storage_of(tensor) == storage for _, tensor in tensors_in((args, kwargs)))
        return function(*args, **kwargs)


def _spread(model: nn.Module, candidate: Candidate, look: Look, inputs: Any, *, watched: bool) -> Reach:
    """Tell how far what a call returns spreads to the output of a pass, other than as itself."""
    calls: Counter[str] = Counter()
    poisoned: list[Tensor] = []
    readers = _Readers()

    def poison(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = (name, calls[name])
        calls[name] += 1
        output = original(*args, **kwargs)
        if key != candidate.call.key:
            return output
        code = item_at(output, candidate.path)
        # Not a number spreads to all that is computed from it, however faint the signal of an untrained model.
        poisoned.append(torch.full_like(code, math.nan))
        readers.tensor = code
        return map_tensors(output, lambda t: poisoned[0] if t is code else t)

    with preserved_modes(model), sandbox(model, device_of(model, *inputs)), torch.no_grad():
        model.train(look.training)
        args, kwargs = map_tensors(inputs, torch.clone)
        with overridden(visible_modules(model), poison), readers if watched else nullcontext():
            output = model(*args, **kwargs)
    itself = {storage_of(tensor) for tensor in poisoned}
    results = [tensor for tensor in results_of(output, look.logits) if storage_of(tensor) not in itself]
    if not any(bool(tensor.isnan().any()) for tensor in results):
        return Reach.NOTHING
    return Reach.SOME if readers.found else Reach.ALL
