"""What a tap might leave behind on a model."""

from __future__ import annotations

from typing import Any

from torch import nn


def traces(model: nn.Module, *, buffers: bool = True) -> dict[str, Any]:
    """Return everything that a tap might leave behind on a model: compare before and after.

    Leave `buffers` out where passes may replace them, as those of some layers do.
    """
    return {
        name: (
            module.__dict__.get("forward"),
            module.__dict__.get("_compiled_call_impl"),
            [len(hooks) for hooks in hooks_of(module)],
            module.training,
            getattr(module, "momentum", None),
            getattr(module, "track_running_stats", None),
            {key: id(buffer) for key, buffer in module._buffers.items() if buffers},
            {
                key: (id(weight), weight.requires_grad, weight._version)
                for key, weight in module._parameters.items()
                if weight is not None
            },
        )
        for name, module in model.named_modules()
    }


def hooks_of(module: nn.Module) -> list[Any]:
    return [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
