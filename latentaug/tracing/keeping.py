"""A model given back as it was: weights, buffers, gradients, modes, and whatever else its modules keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from latentaug.tracing.state import State, named_modules_of, restore


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Give a model back as it is now, all of it, whatever runs within the context.

    Weights, also frozen ones, keep their identity; buffers too, as passes see, and change, copies of them. Plain
    tensors, numbers, containers and random generators on modules get back what they held; nothing keeps a graph. Modes
    are switched back by the modules' own methods.

    Args:
        model: The model. Of one that is spread over processes, weights and gradients are left alone.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> model.passes = 0
        >>> with kept(model):
        ...     model.passes, _ = 5, model.weight.data.zero_()
        >>> model.passes, bool(model.weight.any())
        (0, True)
    """
    with torch.inference_mode(False):
        state = State(model, copied=None)
        modules = [module for _, module in [*named_modules_of(model), *state.hidden]]
        modes = [(module, module.training) for module in modules]
        weights = [] if is_spread(model) else [_Weights(module) for module in modules if not _is_lazy(module)]
        for _, module in state.hidden:  # sub-modules' buffers are lent by those who know which of them move
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        give_modes_back(modes)
        state.give_back(values=True)
        for one in weights:
            one.give_back()


class _Weights:
    """The parameters of one module, with their values, and which buffers and submodules it has."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters = dict(module._parameters)
        self._buffers = dict(module._buffers)
        self._modules = dict(module._modules)
        self._values: dict[str, tuple[Tensor, bool, Any]] = {}
        # As of those that a functional call has lent.
        self._derived = {key for key, weight in module._parameters.items() if weight is not None and not weight.is_leaf}
        for key, weight in module._parameters.items():
            if weight is not None:
                gradient = weight.grad if weight.is_leaf else None
                self._values[key] = weight.detach().clone(), weight.requires_grad, gradient
                if gradient is not None:
                    weight.grad = None

    def give_back(self) -> None:
        """Put everything in its place again, with its values."""
        _refill(self._module._parameters, self._parameters)
        _refill(self._module._buffers, self._buffers)
        _refill(self._module._modules, self._modules)
        for key, (values, required_grad, gradient) in self._values.items():
            weight: Any = self._parameters[key]
            restore(weight, values, key in self._derived, required_grad)
            if weight.is_leaf:
                weight.grad = gradient


def _refill(slots: dict[str, Any], before: dict[str, Any]) -> None:
    if slots.keys() != before.keys() or any(slots[key] is not value for key, value in before.items()):
        slots.clear()
        slots.update(before)


def _is_lazy(module: nn.Module) -> bool:
    return any(is_lazy(one) for one in (*module._parameters.values(), *module._buffers.values()) if one is not None)


def is_sharded(module: nn.Module) -> bool:
    """Tell whether `fully_shard` was called with the very module."""
    return hasattr(module, "set_reshard_after_backward")


def is_flattened(module: nn.Module) -> bool:
    """Tell whether the very module is a `FullyShardedDataParallel`, which keeps weights as flat pieces of several."""
    return "_fsdp_wrapped_module" in module._modules


def scatter(model: nn.Module) -> None:
    """Let each process hold its part of a model's weights only; FSDP keeps what it gathers for a pass."""
    for _, module in named_modules_of(model):
        if is_sharded(module):
            part: Any = module
            part.reshard()


def is_distributed(tensor: Tensor) -> bool:
    """Tell whether a tensor is spread over processes, so that this one holds a part of it or knows who does."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a distributed tensor; others as they are."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def is_spread(model: nn.Module) -> bool:
    """Tell whether the weights of a model are spread over processes, by FSDP or as distributed tensors."""
    return any(
        is_sharded(module)
        or is_flattened(module)
        or any(weight is not None and is_distributed(weight) for weight in module._parameters.values())
        for _, module in named_modules_of(model)
    )


def give_modes_back(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Switch modules back to their modes; those that do more than that on being switched, by their own methods.

    Layers that merge weights in eval mode, for instance, take them apart again.

    Args:
        modes: Modules with the modes they had, the outer ones first.
    """
    for module, training in modes:
        if module.training is training:
            continue
        kind = type(module)
        own_eval = kind.eval is not nn.Module.eval or "eval" in vars(module)
        if not training and own_eval:
            module.eval()
        elif kind.train is not nn.Module.train or "train" in vars(module):
            module.train(training)
        module.training = training
