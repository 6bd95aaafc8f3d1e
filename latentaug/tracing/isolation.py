"""Context managers that leave no trace: statistics, buffers, weights and modes as they were."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from latentaug.tracing.keeping import give_modes_back, is_sharded, kept
from latentaug.tracing.own_passes import own_passes
from latentaug.tracing.random_state import preserved_random_state


@contextmanager
def sandbox(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the model run, with gradients, for our own purposes: it stays as it is, and so do the random streams.

    Raises:
        ValueError: The model or its input is on the meta device.
    """
    if device.type == "meta" or any(weight.is_meta for weight in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} or its input is on the meta device, where tensors have no values to look at. "
            "Move the model to another one by model.to_empty(device=...), and load its weights, first."
        )
    with torch.inference_mode(False):  # where copies of inference tensors are plain ones
        lent = {name: value.clone() for name, value in plain_buffers(model)}
    with (
        own_passes(model),
        preserved_random_state(device),
        kept(model),
        frozen_norm_statistics(model),
        borrowed_buffers(model, lent),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def plain_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name every buffer that is no statistic of a normalisation layer."""
    for path, module in model.named_modules():
        for name, value in module.named_buffers(recurse=False):
            if not is_norm_statistic(module, name):
                yield f"{path}.{name}" if path else name, value


def submodules(model: nn.Module) -> list[nn.Module]:
    """List the model and all modules in it, each once: `model.modules()` at a quarter of its cost.

    Example:
        >>> len(submodules(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))))
        4
    """
    found, seen = [model], {model}
    for module in found:  # which grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in seen:
                found.append(child)
                seen.add(child)
    return found


@contextmanager
def frozen_norm_statistics(*modules: nn.Module) -> Iterator[None]:
    """Normalise as in the current mode, but leave running statistics alone.

    In train mode, batch and instance normalisation keep using the statistics of the batch, and neither the running
    mean and variance nor `num_batches_tracked` move. Nothing changes for modules in eval mode. Every module gets back
    the value it had, also after an exception.

    Args:
        modules: Roots; all their submodules are covered.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> with frozen_norm_statistics(norm):
        ...     _ = norm(torch.randn(2, 3, 4, 4))
        >>> int(norm.num_batches_tracked), float(norm.running_mean.sum())
        (0, 0.0)
    """
    saved: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for root in modules:
            for module in submodules(root):
                if not (isinstance(module, _NormBase) and module.training and module.track_running_stats):
                    continue
                if isinstance(module, _InstanceNorm):
                    # Without tracking it would still write its buffers, and without momentum round them.
                    for name, value in module._buffers.items():
                        saved.append((module._buffers, name, value))
                    module._buffers.update(_copies_of(module._buffers))
                else:
                    saved.append((vars(module), "track_running_stats", True))
                    module.track_running_stats = False
        yield
    finally:
        for holder, name, value in reversed(saved):
            holder[name] = value


def norm_tracking(module: nn.Module) -> list[tuple[_NormBase, bool]]:
    """Note of every normalisation layer whether it follows its statistics, for `repeated_norms`."""
    return [(one, one.track_running_stats) for one in submodules(module) if isinstance(one, _NormBase)]


@contextmanager
def repeated_norms(tracking: Sequence[tuple[_NormBase, bool]]) -> Iterator[None]:
    """Normalise as when `norm_tracking` was called, and leave running statistics alone.

    Kernels are given, and keep for the backward pass, as many tensors as then, which `torch.utils.checkpoint` needs;
    after `frozen_norm_statistics`, for instance, they would get running statistics where they got none.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> tracking = norm_tracking(norm)
        >>> with repeated_norms(tracking):
        ...     _ = norm(torch.randn(2, 3, 4, 4))
        >>> int(norm.num_batches_tracked), float(norm.running_mean.sum())
        (0, 0.0)
    """
    saved = [(module, module.track_running_stats, dict(module._buffers)) for module, _ in tracking]
    try:
        for module, tracks in tracking:
            module.track_running_stats = tracks
            module._buffers.update(_copies_of(module._buffers))
        yield
    finally:
        for module, tracks, buffers in saved:
            module.track_running_stats = tracks
            module._buffers.update(buffers)


def _copies_of(buffers: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Copy buffers to plain tensors, which may be written to within inference mode and outside."""
    with torch.inference_mode(False):
        return {name: None if value is None else value.clone() for name, value in buffers.items()}


@contextmanager
def constant_norm_parameters(root: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let batch and instance normalisation below `names` see their scale and shift as constants."""
    saved: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name in names:
            for module in root.get_submodule(name).modules():
                parameters: dict[str, Any] = module._parameters if isinstance(module, _NormBase) else {}
                for key, parameter in parameters.items():
                    if parameter is not None:
                        saved.append((parameters, key, parameter))
                        parameters[key] = parameter.detach()
        yield
    finally:
        for parameters, key, parameter in reversed(saved):
            parameters[key] = parameter


def is_norm_statistic(module: nn.Module, buffer: str) -> bool:
    """Tell whether `buffer` of `module` is one that `frozen_norm_statistics` protects."""
    return isinstance(module, _BatchNorm | _InstanceNorm) and buffer in (
        "running_mean",
        "running_var",
        "num_batches_tracked",
    )


def is_moved_by_its_norm(module: nn.Module, buffer: str) -> bool:
    """Tell whether `buffer` of `module` is a statistic that normalising writes in the current mode.

    In train mode all are. In PyTorch 2.4, instance normalisation writes what it has read in eval mode too.
    """
    if not is_norm_statistic(module, buffer):
        return False
    return module.training or (isinstance(module, _InstanceNorm) and _instance_norm_writes_in_eval_mode())


@functools.cache
def _instance_norm_writes_in_eval_mode() -> bool:
    norm = nn.InstanceNorm1d(1, track_running_stats=True).eval()
    mean: Any = norm.running_mean
    before = mean._version
    norm(torch.ones(1, 1, 2))
    return bool(mean._version != before)


@contextmanager
def borrowed_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let `model` see, and change, other tensors in place of some of its buffers.

    The model's own tensors are put back afterwards, as they were, whatever happened to the borrowed ones.

    Args:
        model: The root that the names start from.
        values: Dotted buffer names and the tensors to lend.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with borrowed_buffers(norm, {"running_mean": torch.ones(2)}):
        ...     norm.running_mean.tolist()
        [1.0, 1.0]
        >>> norm.running_mean.tolist()
        [0.0, 0.0]
    """
    saved: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
    try:
        for name, value in values.items():
            path, _, key = name.rpartition(".")
            buffers = model.get_submodule(path)._buffers
            saved.append((buffers, key, buffers[key]))
            buffers[key] = value
        yield
    finally:
        for buffers, key, original in reversed(saved):
            buffers[key] = original


@contextmanager
def constant_weights(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Build no graph to the weights, until the context is left or the function that it yields is called.

    Unlike under `torch.no_grad()`, what is computed meanwhile may be changed in place later.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> with constant_weights(model) as thaw:
        ...     before = model(torch.ones(2))
        ...     thaw()
        ...     after = model(before)
        >>> before.requires_grad, after.requires_grad
        (False, True)
    """
    weights = [
        (module._parameters, key, weight)
        for module in submodules(model)
        for key, weight in module._parameters.items()
        if weight is not None and weight.requires_grad and weight.is_leaf
    ]

    def thaw() -> None:
        for parameters, key, weight in weights:
            weight.requires_grad_(True)
            gathered = parameters[key]  # what stands for a sharded weight within a pass was frozen with it
            if gathered is not None:
                gathered.requires_grad_(True)

    try:
        for _, _, weight in weights:
            weight.requires_grad_(False)
        yield thaw
    finally:
        thaw()


@contextmanager
def gathered_weights(module: nn.Module) -> Iterator[None]:
    """Keep the weights that FSDP has gathered for a forward pass of `module`, for as long as the context lasts.

    FSDP scatters them at the end of every backward pass, also of one that a forward pass makes on its way.

    Args:
        module: Any module; nothing happens to one that is not sharded.
    """
    scatter: Any = module.set_reshard_after_backward if is_sharded(module) else lambda *_, **__: None
    scatter(False, recurse=False)
    try:
        yield
    finally:
        scatter(True, recurse=False)


@contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Give every submodule its own train or eval mode back, not only the root; by its own methods if it has some.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
        >>> _ = model[1].eval()
        >>> with preserved_modes(model):
        ...     _ = model.eval()
        >>> [m.training for m in model]
        [True, False]
    """
    saved = [(module, module.training) for module in submodules(model)]
    try:
        yield
    finally:
        give_modes_back(saved)
