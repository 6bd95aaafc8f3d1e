"""What modules keep on themselves beside weights, buffers and submodules: features, caches, counters."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor, nn

from latentaug.tracing.tree import version_of

Attributes: TypeAlias = dict[tuple[str, str], list[tuple[Any, int | None]]]


_OWN = vars(nn.Module()).keys()


def attributes_of(model: nn.Module) -> Attributes:
    """List what every submodule keeps: each value, or what a container holds, with the versions of tensors."""
    return {
        (name, key): [(part, version_of(part) if isinstance(part, Tensor) else None) for part in _parts(value)]
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in _OWN
    }


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return [*value] if isinstance(value, list | tuple | set) else [value]


def changed_attributes(before: Attributes, after: Attributes) -> frozenset[tuple[str, str]]:
    """Name the attributes, by module and name, that were set, filled or changed in place.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.ReLU())
        >>> before = attributes_of(model)
        >>> model[0].seen = torch.ones(1)
        >>> changed_attributes(before, attributes_of(model))
        frozenset({('0', 'seen')})
    """
    return frozenset(key for key, parts in after.items() if not _same(before.get(key), parts))


def _same(old: list[tuple[Any, int | None]] | None, new: list[tuple[Any, int | None]]) -> bool:
    return (
        old is not None
        and len(old) == len(new)
        and all(a is b and version == other for (a, version), (b, other) in zip(old, new, strict=True))
    )
