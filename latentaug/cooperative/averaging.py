"""Gradients of a model that nothing wraps, averaged over the processes that train it together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed, nn

from latentaug import ranks
from latentaug.cooperative.model import CooperativeModel
from latentaug.tracing.keeping import is_distributed, is_flattened

_BUCKET = 25 * 2**20
"""Bytes that are sent at once, as DDP does."""

_alike: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""Models whose weights were seen to be the same on all ranks of a group."""


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Average gradients over all ranks of `torch.distributed`, in place; alone it does nothing.

    A parameter that has a gradient on some ranks only counts as 0 on the others; one that has none anywhere keeps none.
    Gradients that are the same on all ranks stay as they are, so that averages may be averaged again. Those of
    distributed tensors, as FSDP2 makes them, are left to what distributes them. Nothing waits for the device.

    Args:
        model: The model, the same on all ranks.

    Raises:
        RanksDifferError: Ranks have models of different numbers of parameters, or are elsewhere.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> average_gradients(layer)
        >>> layer.weight.grad
        tensor([[1., 1.]])
    """
    if not ranks.several():
        return
    parameters = [one for one in model.parameters() if one.requires_grad and not is_distributed(one)]
    there = ranks.anywhere("gradients to average", [one.grad is not None for one in parameters])
    gradients = [_gradient(one) for one, somewhere in zip(parameters, there, strict=True) if somewhere]
    for bucket in _buckets(gradients):
        flat = torch.cat([one.reshape(-1) for one in bucket]).div_(ranks.count())
        distributed.all_reduce(flat)
        for one, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
            one.copy_(part.view_as(one))


def see_that_weights_are_alike(model: nn.Module) -> None:
    """See at a model's first step that all ranks have the same weights: averages of gradients keep differences.

    Raises:
        RuntimeError: They differ.
    """
    everyone = distributed.group.WORLD if ranks.several() else None
    if everyone is None or _alike.get(model) is everyone:
        return
    sums = [_sum(one) for one in model.parameters() if not is_distributed(one) and not one.is_meta]
    digests = ranks.gathered("weights to compare", torch.stack(sums).tolist() if sums else [])
    if any(one != digests[0] for one in digests):
        raise RuntimeError(
            "All ranks must begin with the same weights, as their gradients are averaged; they differ. Call "
            "torch.manual_seed with the same number on all ranks before the model and its heads are made, or wrap the "
            "model in DistributedDataParallel, which takes those of rank 0. For independent models pass average=False."
        )
    _alike[model] = everyone


def is_averaged_by_wrapper(model: nn.Module) -> bool:
    """Tell whether what is wrapped around a `CooperativeModel` averages its gradients.

    Example:
        >>> is_averaged_by_wrapper(nn.Linear(2, 2))
        False
    """
    for module in model.modules():
        if isinstance(module, CooperativeModel):
            return False
        if isinstance(module, nn.parallel.DistributedDataParallel) or is_flattened(module):
            return True
    return False


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    elif parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()
    return parameter.grad


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of one kind, up to a size."""
    kinds: dict[Any, list[Tensor]] = {}
    for one in gradients:
        bucket = kinds.setdefault((one.dtype, one.device), [])
        bucket.append(one)
        if sum(held.numel() * held.element_size() for held in bucket) >= _BUCKET:
            yield kinds.pop((one.dtype, one.device))
    yield from kinds.values()


def _sum(parameter: Tensor) -> Tensor:
    """Return a sum of a tensor's bits, which is the same on every device."""
    values = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return values.contiguous().view(whole).sum(dtype=torch.int64).cpu()
