"""Networks as programs: lists of steps that `forward` runs one after the other, and that printing shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Step(NamedTuple):
    """One line of a program: the values named `given`, through a module or a function, become those named `made`."""

    what: str
    given: tuple[str, ...]
    made: tuple[str, ...]
    function: bool = False


class Program(nn.Module):
    """Runs steps, and returns some of the values in a container of its own kind."""

    def __init__(self, inputs: tuple[str, ...], returned: tuple[str, ...], container: str = "tensor") -> None:
        super().__init__()
        self.inputs, self.returned, self.container = inputs, returned, container
        self.steps: list[Step] = []

    def add(self, module: nn.Module, given: str = "x", made: str = "x", name: str | None = None) -> str:
        """Append a call of a module; return the name it is kept by."""
        name = name or f"m{len(self._modules)}"
        if name not in self._modules:
            self.add_module(name, module)
        self.steps.append(Step(name, tuple(given.split()), tuple(made.split())))
        return name

    def do(self, function: str, given: str = "x", made: str = "x") -> None:
        """Append a function that stands between modules."""
        self.steps.append(Step(function, tuple(given.split()), tuple(made.split()), function=True))

    def forward(self, *given: Any) -> Any:
        values: dict[str, Any] = dict(zip(self.inputs, given, strict=True))
        for what, names, made, function in self.steps:
            run = FUNCTIONS[what] if function else getattr(self, what)
            result = run(*[values[name] for name in names])
            if len(made) == 1:
                values[made[0]] = result
            else:
                values.update(zip(made, result.values() if isinstance(result, dict) else result, strict=True))
        return CONTAINERS[self.container]([(name, values[name]) for name in self.returned])

    def extra_repr(self) -> str:
        return "\n".join(
            [f"{', '.join(s.made)} = {s.what}{'()' if s.function else ''} <- {', '.join(s.given)}" for s in self.steps]
            + [f"return {self.container}: {', '.join(self.returned)}"]
        )


@dataclass
class Fields:
    """What some networks return."""

    out: Any
    more: Any = None


class Pair(NamedTuple):
    """What other networks return."""

    out: Any
    more: Any = None


CONTAINERS: dict[str, Callable[[list[tuple[str, Any]]], Any]] = {
    "tensor": lambda pairs: pairs[0][1],
    "tuple": lambda pairs: tuple(value for _, value in pairs),
    "list": lambda pairs: [value for _, value in pairs],
    "dict": dict,
    "dataclass": lambda pairs: Fields(pairs[0][1], [value for _, value in pairs[1:]]),
    "namedtuple": lambda pairs: Pair(pairs[0][1], tuple(value for _, value in pairs[1:])),
}


def _resized(x: Tensor, other: Tensor) -> Tensor:
    if x.shape[2:] == other.shape[2:]:
        return x
    return F.interpolate(x, size=other.shape[2:], mode="nearest")


def _part_in_place(x: Tensor) -> Tensor:
    x = x * 1.0
    x[:, :1] += 0.5
    return x


def _view_in_place(x: Tensor) -> Tensor:
    half = x[:, : x.shape[1] // 2]
    half.mul_(0.9)
    return x


def _chunked(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a.relu()], 1)


def _added_in_place(skip: Tensor, x: Tensor) -> Tensor:
    skip += _resized(x, skip)
    return skip


def _standardised_in_place(x: Tensor) -> Tensor:
    return x.sub_(x.mean()).div_(x.std() + 1e-3)


def _last_of(features: Any) -> Any:
    return features.pop() if isinstance(features, list) else features[-1]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "same": lambda x: x,
    "relu": F.relu,
    "relu_": torch.relu_,
    "add_": lambda x: x.add_(0.1),
    "tanh": torch.tanh,
    "gate": lambda x: x * x.sigmoid(),
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll(1, -1),
    "pad": lambda x: F.pad(x, (1, 0))[..., 1:],
    "part in place": _part_in_place,
    "view in place": _view_in_place,
    "chunked": _chunked,
    "dropout": lambda x: F.dropout(x, 0.2, training=True),
    "noise": lambda x: x + 0.05 * torch.rand_like(x),
    "instance": lambda x: F.instance_norm(x) if x.ndim > 3 else F.layer_norm(x, x.shape[-1:]),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous(),
    "standardised": lambda x: (x - x.mean()) / (x.std() + 1e-3),
    "standardised in place": _standardised_in_place,
    "branch": lambda x: x * 1.1 if bool(x.detach().float().sum() > 0) else x.tanh(),
    "cat": lambda x, s: torch.cat([_resized(x, s), s], 1),
    "plus": lambda x, s: _resized(x, s) + s,
    "plus in place": lambda x, s: _added_in_place(s, x),
    "plus in place, other": lambda x, s: _resized(x, s).add_(s),
    "times": lambda x, s: _resized(x, s) * s.sigmoid(),
    "last of": _last_of,
    "sum": lambda t, early: t + early,
    "sum in place": lambda t, early: early.add_(t),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "pooled up": lambda x, s: _resized(x, s),
    "map of": lambda t, x: t[:, -x[0, 0].numel() :].transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]),
}
GLUE = [
    "relu", "relu_", "add_", "tanh", "gate", "flip", "roll", "pad", "part in place", "view in place", "chunked",
    "dropout", "noise", "instance", "channels last", "standardised", "branch", "same",
]  # fmt: skip
