"""The weights and buffers of a pass: the very tensors, whether they have changed since, and which a pass moves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentaug.tracing.fingerprint import Fingerprint
from latentaug.tracing.isolation import frozen_norm_statistics, is_moved_by_its_norm, is_norm_statistic
from latentaug.tracing.keeping import is_spread
from latentaug.tracing.slots import ABSENT
from latentaug.tracing.state import State, named_modules_of
from latentaug.tracing.tree import copied, version_of

_ALL = 2**20  # entries of a tensor that are looked at to find out what moves


class Slot(NamedTuple):
    """Where a module keeps a weight, a buffer or a submodule; and what stood there."""

    path: str
    key: str
    holder: dict[str, Any]
    value: Any
    version: int | None
    kind: tuple[torch.dtype, torch.device] | None

    @property
    def name(self) -> str:
        """Dotted name, from the model on."""
        return f"{self.path}.{self.key}" if self.path else self.key


class PassTensors:
    """The weights, buffers and submodules that a pass of a model uses.

    Args:
        model: The model, at the start of the pass.
        moving: Names of those buffers and frozen weights that the pass moves: their values are copied.
        hidden: Modules that it keeps beside its submodules, by name.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> tensors = PassTensors(model, ())
        >>> model.weight.data.mul_(2).shape, tensors.changed()
        (torch.Size([2, 2]), ['weight'])
    """

    def __init__(self, model: nn.Module, moving: Collection[str], hidden: Sequence[tuple[str, nn.Module]] = ()) -> None:
        self.spread = is_spread(model)
        self.slots: list[Slot] = []
        self.modes: list[tuple[str, nn.Module, bool]] = []
        self.starts: dict[int, Tensor] = {}
        plain: list[Tensor] = []
        for path, module in [*named_modules_of(model), *hidden]:
            self.modes.append((path, module, module.training))
            for key, child in module._modules.items():
                self._add(path, key, module._modules, child)
                if isinstance(child, torch.jit.ScriptModule):
                    for name, weight in child.named_parameters():
                        self._add(f"{path}.{key}" if path else key, name, {name: weight}, weight)
            for key, parameter in module._parameters.items():
                self._add(path, key, module._parameters, parameter)
            for key, buffer in module._buffers.items():
                if not is_moved_by_its_norm(module, key):
                    self._add(path, key, module._buffers, buffer)
                if buffer is not None and not is_norm_statistic(module, key):
                    plain.append(buffer)
        for index, slot in enumerate(self.slots if moving else ()):
            if slot.name in moving and isinstance(slot.value, Tensor):
                self.starts[index] = copied(slot.value)
        self.note()
        watched = {id(slot.value) for slot in self._watched()}
        self._buffers_print = Fingerprint([buffer for buffer in plain if id(buffer) in watched], elsewhere=False)

    def _add(self, path: str, key: str, holder: dict[str, Any], value: Any) -> None:
        if isinstance(value, Tensor):
            self.slots.append(Slot(path, key, holder, value, version_of(value), (value.dtype, value.device)))
        elif value is not None:
            self.slots.append(Slot(path, key, holder, value, None, None))

    def _watched(self) -> list[Slot]:
        return [slot for i, slot in enumerate(self.slots) if i not in self.starts and isinstance(slot.value, Tensor)]

    def note(self) -> None:
        """Take the values of now for those of the pass."""
        self.slots = [
            slot._replace(version=version_of(slot.value)) if slot.kind is not None else slot for slot in self.slots
        ]
        self.print = Fingerprint([] if self.spread else [slot.value for slot in self._watched()])

    def moved(self, *, trainable: bool = True) -> set[str]:
        """Name weights and buffers, but for those known to move, that were changed or replaced since.

        Of what no version counter tells, buffers on the CPU are seen that are no statistics of PyTorch's own norms.

        Args:
            trainable: Whether weights that learn are named too.
        """
        written = {id(tensor) for tensor in self._buffers_print.changed()}
        return {
            slot.name
            for i, slot in enumerate(self.slots)
            if i not in self.starts
            and slot.kind is not None
            and not (isinstance(slot.value, nn.Parameter) and self.spread)
            and (trainable or not _learns(slot.value))
            and (
                version_of(slot.value) != slot.version
                or slot.holder.get(slot.key) is not slot.value
                or id(slot.value) in written
            )
        }

    def recast(self) -> str | None:
        """Tell of a weight or buffer that has another type, or another device, than in the pass."""
        for slot in self.slots:
            if slot.kind is not None and slot.kind != (slot.value.dtype, slot.value.device):
                (dtype, device), now = slot.kind, slot.value
                what = f"on {now.device}" if now.dtype == dtype else f"of dtype {now.dtype}"
                was = f"on {device}" if now.dtype == dtype else f"of {dtype}"
                return f"{slot.name!r} is {what} now, and was {was} then"
        return None

    def switched(self) -> str | None:
        """Tell of a module that is in another mode than in the pass."""
        for path, module, training in self.modes:
            if module.training != training:
                mode = "train" if module.training else "eval"
                return f"{path or 'the model'!r} was switched to {mode} mode"
        return None

    def changed(self) -> list[str]:
        """Name the weights and buffers whose values are others than in the pass; on accelerators, as far as known."""
        found = [slot.name for slot in self._watched() if version_of(slot.value) != slot.version]
        if not found and not self.spread and (moved := {id(tensor) for tensor in self.print.changed()}):
            found = [slot.name for slot in self._watched() if id(slot.value) in moved]
        return found

    @contextmanager
    def lent(self, *, fixed: bool, starts: bool) -> Iterator[None]:
        """Let the model use what the pass used, and give it back what it has now.

        Args:
            fixed: Whether the very tensors and submodules of the pass are lent, where others stand in their place.
            starts: Whether those that move start from where they started in the pass.
        """
        lent: list[tuple[Slot, Any]] = []
        for i, slot in enumerate(self.slots):
            if i in self.starts:
                if starts:
                    lent.append((slot, self._start(i, slot.value)))
            # Weights that are gathered within a pass stand elsewhere now. With nothing to start from, all may move.
            elif fixed and not self.spread and (starts or slot.holder.get(slot.key) is not slot.value):
                lent.append((slot, slot.value))
        now = [(slot, slot.holder.get(slot.key, ABSENT)) for slot, _ in lent]
        try:
            for slot, value in lent:
                slot.holder[slot.key] = value
            yield
        finally:
            for slot, value in now:
                if value is ABSENT:
                    slot.holder.pop(slot.key, None)
                elif slot.holder.get(slot.key) is not value:
                    slot.holder[slot.key] = value

    def _start(self, index: int, value: Tensor) -> Tensor:
        copy = copied(self.starts[index])
        return nn.Parameter(copy, requires_grad=False) if isinstance(value, nn.Parameter) else copy


class Before:
    """What a model keeps now, to run it from there again without a trace.

    Buffers, but for the statistics of normalisation layers of PyTorch; and what its modules keep beside.

    Args:
        model: The model.
        known: Names of what is known to move: large buffers, frozen weights and large tensors move with these only.
    """

    def __init__(self, model: nn.Module, known: Collection[str] = ()) -> None:
        self._model, self._state = model, State(model, copied=known)
        self._buffers: list[tuple[dict[str, Any], str, Tensor]] = []
        self._weights: list[tuple[dict[str, Any], str, Tensor]] = []
        for path, module in [*named_modules_of(model), *self._state.hidden]:
            for key, buffer in module._buffers.items():
                name = f"{path}.{key}" if path else key
                if buffer is None or is_norm_statistic(module, key):
                    continue
                if buffer.numel() <= _ALL or name in known:
                    self._buffers.append((module._buffers, key, copied(buffer)))
            for key, weight in module._parameters.items() if known else ():
                if weight is not None and not weight.requires_grad and (f"{path}.{key}" if path else key) in known:
                    self._weights.append((module._parameters, key, copied(weight)))

    @property
    def hidden(self) -> list[nn.Module]:
        """Modules that the model keeps beside its submodules."""
        return [module for _, module in self._state.hidden]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Let the model start from there, and give it back what it has now."""
        slots = [*self._buffers, *self._weights]
        now, saved = State(self._model, small=False), [(holder, key, holder.get(key)) for holder, key, _ in slots]
        try:
            for holder, key, value in self._buffers:
                holder[key] = copied(value)
            for holder, key, value in self._weights:
                holder[key] = nn.Parameter(copied(value), requires_grad=False)
            self._state.lend()
            yield
        finally:
            for holder, key, old in saved:
                holder[key] = old
            now.give_back()


@contextmanager
def held_still(model: nn.Module, known: Collection[str] = ()) -> Iterator[None]:
    """Let a model run in its current mode without a trace in what it keeps: it normalises by its batches all the same.

    Running statistics, of whatever class, codebooks, counters and averages stay as they are.

    Args:
        model: The model.
        known: Names of what is known to move; see `Before`.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> model.passes = 0
        >>> with held_still(model):
        ...     model.passes += 1
        ...     _ = model(torch.randn(3, 2))
        >>> model.passes, int(model[0].num_batches_tracked)
        (0, 0)
    """
    before = Before(model, known)
    with before.again(), frozen_norm_statistics(model, *before.hidden):
        yield


class Values:
    """All weights and plain buffers of a model with their values, to find out which of them a pass moves.

    Args:
        model: The model.
        hidden: Modules that it keeps beside its submodules, by name.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> values = Values(model)
        >>> model.bias.data.add_(1).shape, values.moved()
        (torch.Size([2]), {'bias'})
    """

    def __init__(self, model: nn.Module, hidden: Sequence[tuple[str, nn.Module]] = ()) -> None:
        self._model, self._hidden = model, hidden
        self._before = self._list()
        self._versions = {name: version_of(tensor) for name, tensor in self._before.items()}
        self._print = Fingerprint([*self._before.values()], _ALL)

    def _list(self) -> dict[str, Tensor]:
        return {
            f"{path}.{key}" if path else key: tensor
            for path, module in [*named_modules_of(self._model), *self._hidden]
            for slots in (module._parameters, module._buffers)
            for key, tensor in slots.items()
            if tensor is not None and not is_norm_statistic(module, key)
        }

    def moved(self, *, trainable: bool | None = None) -> set[str]:
        """Name what was replaced or changed since; of weights that learn only, or of all others."""
        now = self._list()
        changed = {id(tensor) for tensor in self._print.changed(wait=True)}
        return {
            name
            for name in now.keys() | self._before.keys()
            if now.get(name) is not self._before.get(name)
            or version_of(now[name]) != self._versions[name]
            or id(now[name]) in changed
            if trainable is None or trainable is _learns(now.get(name))
        }


def _learns(tensor: Tensor | None) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.requires_grad
