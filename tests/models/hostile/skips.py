"""Skip connections, and the ways other than return values that features take to the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.case import Case, entered_in
from tests.models.parts import Base, Decoder, Pyramid, conv

CASES: dict[str, Case] = {}
hostile = entered_in(CASES)


@hostile("code")
class SkipConnection(Base):
    """What is skipped, and what comes of it, meet again behind the code."""

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x))
        return self.head(self.up(F.relu(self.code(a))) + a)


@hostile("encoder", path=(2,))
class PoppingDecoder(nn.Module):
    """The decoder empties the encoder's list."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Pyramid(), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        z, b, a = features.pop(), features.pop(), features.pop()
        return self.decoder(a, b, z)


@hostile("encoder", path=(2,))
class DirectForward(PoppingDecoder):
    """Hooks would see nothing here."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder.forward(x)
        z = features.pop()
        a, b = (F.dropout(f, 0.3, self.training) for f in features)
        return self.decoder.forward(a, b, z)


@hostile("encoder.stages.2")
class HookedSkips(nn.Module):
    """The user's own hooks collect the features."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(Pyramid().stages), Decoder()
        self.features: list[Tensor] = []
        for stage in self.encoder.stages:
            stage.register_forward_hook(self.collect)

    def collect(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.features.append(output)

    def forward(self, x: Tensor) -> Tensor:
        self.features.clear()
        self.encoder(x)
        a, b, z = self.features
        return self.decoder(a, b, z)


class Encoder(nn.Module):
    def __init__(self, stages: nn.ModuleList) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


@hostile("code", fast=False)
class HookedGrandchildren(nn.Module):
    """The hooks sit inside what a replay skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.code = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4)), conv(4, 6, 2)
        self.up, self.head = nn.ConvTranspose2d(6, 4, 2, 2), conv(4, 2)
        self.first[0].register_forward_hook(self.collect)

    def collect(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.feature = output

    def forward(self, x: Tensor) -> Tensor:
        z = self.code(self.first(x))
        return self.head(self.up(z) * self.feature)


@hostile("encoder", fast=False)
class SkipsOnSelf(nn.Module):
    """The encoder leaves its features on itself, and the decoder fetches them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder, self.decoder = nn.Identity(), StatefulEncoder(), Decoder()
        self.before = conv(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(self.before(x))
        return self.decoder(*self.encoder.skips, z)


@hostile("encoder", fast=False)
class SkipsOnTheFirstModule(nn.Module):
    """The same, and nothing but the tapped module itself could be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = StatefulEncoder(), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        return self.decoder(*self.encoder.skips, z)


class StatefulEncoder(Pyramid):
    def forward(self, x: Tensor) -> Tensor:
        *self.skips, z = super().forward(x)
        return z


@hostile("bottom", fast=False)
class SkipsOnSelfBeforeTheCode(nn.Module):
    """The features lie on a module that a replay would like to skip; the list is emptied on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bottom, self.decoder = StatefulEncoder(), conv(8, 8), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        z = self.bottom(self.encoder(x))
        b, a = self.encoder.skips.pop(), self.encoder.skips.pop()
        return self.decoder(a, b, z)


@hostile("bottom")
class FeatureListPassedIn(nn.Module):
    """The encoder appends to a list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bottom, self.decoder = Appending(), conv(8, 8), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        features: list[Tensor] = []
        self.encoder(x, features)
        a, b, c = features
        return self.decoder(a, b, self.bottom(c))


class Appending(Pyramid):
    def forward(self, x: Tensor, into: list[Tensor]) -> None:
        into.extend(super().forward(x))


@hostile("bottom")
class FeatureListRewritten(nn.Module):
    """The last of the features is replaced within the list: a new tensor where the old one was."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.refine, self.bottom, self.decoder = Pyramid(), Rewriting(), conv(8, 8), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        self.refine(features)
        a, b, c = features
        return self.decoder(a, b, self.bottom(c))


class Rewriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, features: list[Tensor]) -> None:
        features.append(self.conv(features.pop()))


@hostile("bottom", fast=False)
class HolderPassedIn(nn.Module):
    """The features travel in an object that no rule on tensors can look into."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bottom, self.decoder = Filling(), conv(8, 8), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        holder = Holder()
        c = self.encoder(x, holder)
        return self.decoder(*holder.features, self.bottom(c))


class Holder:
    features: tuple[Tensor, ...]


class Filling(Pyramid):
    def forward(self, x: Tensor, into: Holder) -> Tensor:
        *into.features, z = super().forward(x)
        return z


@hostile("bottom", fast=False)
class LazyFeatures(nn.Module):
    """The encoder is a generator: it runs after it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bottom, self.decoder = Yielding(), conv(8, 8), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.encoder(x)
        return self.decoder(a, b, self.bottom(c))


class Yielding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = Pyramid().stages

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        for stage in self.stages:
            x = stage(x)
            yield x


@hostile("code.bottom")
class NestedCode(nn.Module):
    """The code lies deep inside modules that have not returned when it does: nets built as U in U."""

    def __init__(self) -> None:
        super().__init__()
        inner = Level(6, 8, nn.Conv2d(8, 8, 1))
        self.code = Level(4, 6, inner, down=2)
        self.stem, self.head = conv(3, 4), conv(4, 2)
        self.code.bottom = self.code.inner.inner

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.code(self.stem(x)))


class Level(nn.Module):
    def __init__(self, channels: int, below: int, inner: nn.Module, down: int = 2) -> None:
        super().__init__()
        self.down, self.inner, self.up = conv(channels, below, down), inner, nn.ConvTranspose2d(below, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.relu(self.inner(self.down(x))))
