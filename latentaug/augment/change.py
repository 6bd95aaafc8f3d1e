"""A change: what a transform has sampled, to be made as often as need be, kept, and made again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentaug.layout import CHANNELS_FIRST, Layout

if TYPE_CHECKING:
    from latentaug.augment.base import Criterion, LatentTransform

_CHANGE = "change of"
"""Marks, among packed parameters, a change within a change."""


class Change:
    """One sampled instance of a transform: the same change, whatever code it is applied to.

    Args:
        transform: What it was sampled by.
        params: What was sampled.
        layout: Layout of the codes that it is applied to.
        gate: For whom the transform acts, one for the batch or [B]; None for everybody.

    Example:
        >>> from latentaug import MixStyle
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = MixStyle(p=1)(code, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(change.apply(code), change(code)), sorted(change.params)
        (True, ['order', 'own'])
    """

    def __init__(
        self,
        transform: LatentTransform,
        params: Mapping[str, Any],
        *,
        layout: Layout = CHANNELS_FIRST,
        gate: Tensor | None = None,
    ) -> None:
        self.transform = transform
        self.params = dict(params)
        self.layout = layout
        self.gate = gate

    @property
    def is_identity(self) -> bool:
        """Whether it is known, without asking a device, that nothing changes."""
        return self.gate is not None and self.gate.ndim == 0 and self.gate.is_cpu and not self.gate

    @property
    def whole_pass(self) -> bool:
        """Whether a replay changes all that was computed before the code and is read after it."""
        return self.transform.whole_pass and not self.is_identity

    def apply(self, code: Tensor) -> Tensor:
        """Return the changed code, in the code's own layout, dtype, memory format and place."""
        return in_format_of(code, self.made(code))

    __call__ = apply

    def made(self, code: Tensor) -> Tensor:
        """Return the changed code in whatever memory format it comes: what changes made of others go on with."""
        if self.is_identity:
            return code
        if self.transform.whole_pass:  # samples are combined, so that layouts and prefix tokens make no difference
            return self._gated(code, self.transform.transform(code, **self.params))
        shown = self.layout.to_channels_first(code)
        changed = self._gated(shown, self.transform.transform(shown, **self.params))
        return self.layout.put_back(changed, code)

    def loss(self, criterion: Criterion, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of what a model makes of the changed code.

        Args:
            criterion: Callable (logits, labels) -> scalar.
            logits: What the model returned.
            labels: Labels of the samples as they were before the change.
        """
        if self.is_identity:
            return criterion(logits, labels)
        loss = self.transform.loss(criterion, logits, labels, **self.params)
        if self.gate is None or self.gate.ndim or self.gate.is_cpu:
            return loss
        return torch.where(self.gate, loss, criterion(logits, labels))

    def state_dict(self) -> dict[str, Any]:
        """Return all that was sampled, in containers that `torch.save` writes and loads with `weights_only=True`.

        `LatentTransform.change_from` makes the change from it again.
        """
        layout = (self.layout.channel_dim, self.layout.prefix_tokens)
        return {
            "transform": repr(self.transform),
            "params": packed(self.params),
            "layout": layout,
            "gate": self.gate,
        }

    def to(self, device: torch.device | str) -> Change:
        """Return the same change with what was sampled on another device."""
        moved = copy.copy(self)
        moved.params = _moved(self.params, device)
        moved.gate = self.gate if self.gate is None or self.is_identity else self.gate.to(device)
        return moved

    def on(self, layout: Layout) -> Change:
        """Return the same change for codes of another layout."""
        moved = copy.copy(self)
        moved.layout = layout
        return moved

    def __repr__(self) -> str:
        acts = ", leaves all as it is" if self.is_identity else ""
        params = "".join(f", {name}={_shown(value)}" for name, value in self.params.items())
        return f"{type(self).__name__}(by {type(self.transform).__name__}{params}{acts})"

    def _gated(self, code: Tensor, changed: Tensor) -> Tensor:
        if changed.shape != code.shape:
            raise ValueError(
                f"{type(self.transform).__name__} needs to return a code shaped like the one it was given, "
                f"{tuple(code.shape)}; its transform returned {tuple(changed.shape)}."
            )
        changed = changed.to(code.dtype)
        if self.gate is None:
            return changed
        gate = self.gate.to(code.device)
        return torch.where(gate.view(-1, *[1] * (code.ndim - 1)) if gate.ndim else gate, changed, code)


def in_format_of(code: Tensor, changed: Tensor) -> Tensor:
    """Return what became of a code in the code's memory format, which a network may be in too, and is faster in."""
    for memory_format in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        if code.is_contiguous(memory_format=memory_format):
            return changed.contiguous(memory_format=memory_format)
    return changed


def for_nobody() -> Tensor:
    """Return the gate of a change that acts for nobody, which is known without asking a device."""
    return torch.zeros((), dtype=torch.bool, device="cpu")


def packed(value: Any) -> Any:
    """Return parameters in plain containers: a change among them by its state."""
    if isinstance(value, Change):
        return {_CHANGE: value.state_dict()}
    return _rebuilt(tuple(value) if isinstance(value, tuple) else value, packed)


def unpacked(value: Any, transform: LatentTransform) -> Any:
    """Return what was packed; changes are looked up among the transforms that `transform` is made of."""
    if isinstance(value, Mapping) and _CHANGE in value:
        return transform.change_from(value[_CHANGE])
    return _rebuilt(value, lambda one: unpacked(one, transform))


def _moved(value: Any, device: torch.device | str) -> Any:
    return value.to(device) if isinstance(value, Tensor | Change) else _rebuilt(value, lambda one: _moved(one, device))


def _rebuilt(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return a container of what a function makes of its items, of the same kind; what is none is returned."""
    if isinstance(value, Mapping):
        return {name: function(one) for name, one in value.items()}
    if not isinstance(value, list | tuple):
        return value
    items = [function(one) for one in value]
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _shown(value: Any) -> str:
    """Show a parameter in a few words, without asking a device."""
    if isinstance(value, Tensor):
        if value.is_cpu and value.numel() <= _FEW:
            numbers = value.double().round(decimals=3) if value.is_floating_point() else value
            return str(numbers.flatten().tolist() if value.ndim else numbers.item())
        return f"<{'x'.join(map(str, value.shape))}>"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_shown(one)}' for name, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return repr(value)


_FEW = 8
"""How many numbers of a parameter are shown."""
