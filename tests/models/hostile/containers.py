"""Outputs in containers of every kind."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from tests.models.case import Case, entered_in
from tests.models.parts import Base, Decoder, Pyramid

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


@hostile("encoder", path=("last",))
class SameTensorTwice(nn.Module):
    """The code stands in two places of what the encoder returns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Pyramid(lambda f: {"last": f[-1], "all": tuple(f)}), Decoder()

    def forward(self, x: Tensor) -> dict[str, Any]:
        out = self.encoder(x)
        return {"logits": self.decoder(*out["all"]), "aux": [out["last"] * 2, None, "text", 3]}


Features = namedtuple("Features", "a b z")


@dataclass
class FeatureData:
    a: Tensor
    b: Tensor
    z: Tensor


@dataclass(frozen=True)
class FrozenFeatureData:
    a: Tensor
    b: Tensor
    z: Tensor


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """A dict with attributes, like those of transformers."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


PACKS: dict[str, tuple[Callable[[list[Tensor]], Any], Callable[[Any], Any], tuple[Any, ...]]] = {
    "tuple": (tuple, lambda f: f, (2,)),
    "nested": (lambda f: [f[0], (f[1], {"z": f[2]})], lambda f: (f[0], f[1][0], f[1][1]["z"]), (1, 1, "z")),
    "dict": (lambda f: dict(zip("abz", f, strict=True)), lambda f: f.values(), ("z",)),
    "integer_keys": (lambda f: dict(enumerate(f)), lambda f: f.values(), (2,)),
    "ordered_dict": (lambda f: OrderedDict(zip("abz", f, strict=True)), lambda f: f.values(), ("z",)),
    "model_output": (lambda f: ModelOutput(zip("abz", f, strict=True)), lambda f: (f.a, f.b, f.z), ("z",)),
    "namedtuple": (lambda f: Features(*f), lambda f: f, (2,)),
    "dataclass": (lambda f: FeatureData(*f), lambda f: (f.a, f.b, f.z), ("z",)),
    "frozen_dataclass": (lambda f: FrozenFeatureData(*f), lambda f: (f.a, f.b, f.z), ("z",)),
}


class Packed(nn.Module):
    """Encoder and model return a container of the given kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.pack, self.unpack, _ = PACKS[kind]
        self.encoder, self.decoder = Pyramid(self.pack), Decoder()

    def forward(self, x: Tensor) -> Any:
        a, b, z = self.unpack(self.encoder(x))
        logits = self.decoder(a, b, z)
        return self.pack([logits, b.mean(), z.amax((2, 3))])


CASES |= {f"Returns_{kind}": Case(partial(Packed, kind), "encoder", path=path) for kind, (_, _, path) in PACKS.items()}


@hostile("code")
class LossInTheOutput(Base):
    """Logits, a loss that may be missing, and deep supervision."""

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        a = self.stem(x)
        y = self.up(self.code(a))
        return self.head(y + a), y.square().mean() if self.training else None, [self.head(a), self.head(y)]
