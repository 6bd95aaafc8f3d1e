"""Whether tensors have changed where no version counter tells: by `.data`, or by kernels that don't say.

A few entries of each, spread over it, are kept and compared: at a small part of the cost of what is computed from them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

ENTRIES = 64
"""How many entries of a tensor are looked at; of smaller ones, all."""

_PLAIN = (Tensor, nn.Parameter, nn.Buffer) if hasattr(nn, "Buffer") else (Tensor, nn.Parameter)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # so that not-a-number equals itself


Verdict: TypeAlias = Callable[[], bool | None]
"""Tells whether tensors had changed; None as long as an accelerator has not come to it."""


class Fingerprint:
    """What some tensors hold now, to be compared with what they hold later.

    Args:
        tensors: Any tensors. Those whose memory cannot be looked at (sparse, quantised, nested, of classes of their
            own) are left out.
        entries: How many entries to look at in each, at most.
        elsewhere: Whether to look at those on accelerators too; not where nobody asks for their `verdict`.

    Example:
        >>> weight = torch.zeros(1000)
        >>> before = Fingerprint([weight])
        >>> before.changed()
        []
        >>> weight.data.add_(1).shape, [one is weight for one in before.changed()]
        (torch.Size([1000]), [True])
    """

    def __init__(self, tensors: Sequence[Tensor], entries: int = ENTRIES, *, elsewhere: bool = True) -> None:
        self._entries = entries
        self._groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in tensors:
            if (
                type(tensor) in _PLAIN
                and tensor.layout is torch.strided
                and not tensor.is_meta
                and (elsewhere or tensor.is_cpu)
                and _is_readable(tensor)
            ):
                self._groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        self._seen = {key: self._look(group) for key, group in self._groups.items()}

    def _look(self, group: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            return _bits(torch.cat([_sample(tensor, self._entries) for tensor in group]))

    def changed(self, *, wait: bool = False) -> list[Tensor]:
        """Return the tensors that hold something else now, or are on another device or of another type.

        Args:
            wait: Whether to look at those on accelerators too, which takes waiting for these; else see `verdict`.
        """
        moved = []
        for (device, dtype), group in self._groups.items():
            if (wait or device.type == "cpu") and not self._equal(device, dtype, group):
                moved += [
                    tensor
                    for i, tensor in enumerate(group)
                    if (tensor.device, tensor.dtype) != (device, dtype) or not torch.equal(*self._one(group, i))
                ]
        return moved

    def _equal(self, device: torch.device, dtype: torch.dtype, group: Sequence[Tensor]) -> bool:
        if any((tensor.device, tensor.dtype) != (device, dtype) for tensor in group):
            return False
        now, then = self._look(group), self._seen[device, dtype]
        return now.shape == then.shape and torch.equal(now, then)

    def _one(self, group: Sequence[Tensor], index: int) -> tuple[Tensor, Tensor]:
        """Return the entries of one tensor now and then."""
        tensor = group[index]
        start = sum(_count(one, self._entries) for one in group[:index])
        now = self._look([tensor])
        return now, self._seen[tensor.device, tensor.dtype][start : start + len(now)]

    @property
    def waits(self) -> bool:
        """Whether any of the tensors is on an accelerator."""
        return any(device.type != "cpu" for device, _ in self._groups)

    def verdict(self) -> Verdict:
        """Compare tensors on accelerators, without waiting for these.

        Returns:
            A function that tells whether any had changed, once that is known.
        """
        flags = [
            (self._look(group) != self._seen[device, dtype]).any()
            for (device, dtype), group in self._groups.items()
            if device.type != "cpu" and all((one.device, one.dtype) == (device, dtype) for one in group)
        ]
        if not flags:
            return lambda: False
        if any(not flag.is_cuda for flag in flags):
            return lambda: any(map(bool, flags))
        return _when_ready(flags)


def _when_ready(flags: Sequence[Tensor]) -> Verdict:
    """Bring flags from CUDA devices without waiting."""
    arrived, events = [], []
    for flag in flags:
        arrived.append(torch.empty((), dtype=torch.bool, pin_memory=True).copy_(flag, non_blocking=True))
        events.append(torch.cuda.Event())
        events[-1].record(torch.cuda.current_stream(flag.device))

    def told() -> bool | None:
        return any(map(bool, arrived)) if all(event.query() for event in events) else None

    return told


def _is_readable(tensor: Tensor) -> bool:
    wrapped: Any = getattr(torch._C._functorch, "is_functorch_wrapped_tensor", None)
    return not (tensor.is_quantized or tensor.is_nested or (wrapped is not None and wrapped(tensor)))


def _count(tensor: Tensor, entries: int) -> int:
    return -(-tensor.numel() // _step(tensor.numel(), entries))


@functools.cache
def _step(size: int, entries: int) -> int:
    """Return the step from one entry to the next: coprime to the size, and so to every axis, or one column would do.

    Example:
        >>> _step(2 * 64 * 64, 64)
        129
    """
    step = max(1, size // entries)
    while math.gcd(step, size) > 1:
        step += 1
    return step


def _sample(tensor: Tensor, entries: int) -> Tensor:
    """Return a few entries of a tensor, evenly spread over its memory."""
    tensor = tensor.detach()
    if not tensor.numel():
        return tensor.flatten()
    step, count = _step(tensor.numel(), entries), _count(tensor, entries)
    if tensor.is_contiguous():
        return tensor.as_strided((count,), (step,))
    if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size():  # permuted, as channels-last is
        return tensor.as_strided((count,), (step,), 0)
    return tensor.flatten()[::step]


def _bits(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor if tensor.dtype is torch.bool else tensor.view(_BITS[tensor.element_size()])
