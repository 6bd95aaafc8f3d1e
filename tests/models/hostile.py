"""Little models, each of which breaks a replay that takes one liberty; and what replays are held against.

The oracle is neither kind of replay: it is a fresh model, seeded alike, run once with the code changed on its way out
of the layer. Models are built in float64, so that gradients may be compared to twelve digits.
"""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

# The oracle -------------------------------------------------------------------------------------------------------


def leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested output."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for child in tree.values():
            yield from leaves(child)
    elif isinstance(tree, list | tuple):
        for child in tree:
            yield from leaves(child)
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from leaves(getattr(tree, field.name))


def swapped(tree: Any, old: Tensor, new: Tensor) -> Any:
    """Return `tree` with `new` wherever the very tensor `old` stands."""
    if tree is old:
        return new
    if isinstance(tree, dict):
        return type(tree)((key, swapped(child, old, new)) for key, child in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(swapped(child, old, new) for child in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(swapped(child, old, new) for child in tree)
    if dataclasses.is_dataclass(tree):
        return dataclasses.replace(
            tree, **{f.name: swapped(getattr(tree, f.name), old, new) for f in dataclasses.fields(tree)}
        )
    return tree


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """Follow keys, positions and field names."""
    for key in path:
        tree = getattr(tree, key) if dataclasses.is_dataclass(tree) and not isinstance(tree, dict) else tree[key]
    return tree


@dataclass
class Seen:
    """How often the layer was called, and the code that it returned on the call that counts."""

    calls: int = 0
    code: Tensor | None = None


def change_code(
    model: nn.Module, layer: str, path: tuple[Any, ...], number: int | None, change: Callable[[Tensor], Tensor]
) -> Seen:
    """Let call `number` of the layer return a changed code, for as long as the model lives; None only watches."""
    module, seen = model.get_submodule(layer), Seen()
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        seen.calls += 1
        if seen.calls - 1 != number:
            return output
        code = at(output, path)
        seen.code = code.clone()
        return swapped(output, code, change(code))

    module.__dict__["forward"] = forward
    return seen


def gradients(model: nn.Module, output: Any, more: Sequence[Tensor] = ()) -> list[Tensor | None]:
    """Return the gradient of an objective that sees every output, by every parameter that wants one, and by `more`."""
    wanted = [*(parameter for parameter in model.parameters() if parameter.requires_grad), *more]
    terms = [t for t in leaves(output) if t.requires_grad]
    if not wanted or not terms:
        return []
    objective = torch.stack([(t * torch.linspace(-1, 1, t.numel()).reshape(t.shape)).square().sum() for t in terms])
    return list(torch.autograd.grad(objective.sum(), wanted, retain_graph=True, allow_unused=True))


def random_state() -> tuple[Any, ...]:
    """Return the next draw of each global stream, without drawing it."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    drawn = float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    return drawn


def seed_all(seed: int) -> None:
    """Seed every global stream."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def traces(model: nn.Module) -> dict[str, Any]:
    """Return everything that a tap might leave behind on a model: compare before and after."""
    return {
        name: (
            module.__dict__.get("forward"),
            module.__dict__.get("_compiled_call_impl"),
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks),
            module.training,
            getattr(module, "momentum", None),
            getattr(module, "track_running_stats", None),
            {key: id(buffer) for key, buffer in module._buffers.items()},
            {
                key: (id(weight), weight.requires_grad, weight._version)
                for key, weight in module._parameters.items()
                if weight is not None
            },
        )
        for name, module in model.named_modules()
    }


def same(a: Any, b: Any) -> bool:
    """Tell whether two trees hold bitwise the same numbers."""
    left, right = list(leaves(a)), list(leaves(b))
    return len(left) == len(right) > 0 and all(
        x.shape == y.shape and torch.equal(x, y) for x, y in zip(left, right, strict=True)
    )


def close(a: list[Tensor | None], b: list[Tensor | None], tolerance: float = 1e-11) -> bool:
    """Tell whether two lists of gradients agree; a missing one is a zero.

    Where a gradient is zero in exact arithmetic, as that of a bias before a normalisation, rounding is relative to the
    terms of its sum, which are as large as other gradients.
    """
    if len(a) != len(b):
        return False
    floor = max(1.0, 1e-3 * max((float(t.detach().norm()) for t in b if t is not None), default=0.0))
    for x, y in zip(a, b, strict=True):
        x, y = (torch.zeros(()) if t is None else t.detach() for t in (x, y))
        if float((x - y).norm()) > tolerance * max(floor, float(y.norm())):
            return False
    return True


class CountOperations(TorchDispatchMode):
    """Counts the convolutions and matrix products that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "convolution" in str(function) or "addmm" in str(function)
        return function(*args, **(kwargs or {}))


# The rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One hostile model: how to build it, what to tap, and whether a fast replay may skip part of it."""

    build: Callable[[], nn.Module]
    layer: str
    fast: bool = True
    path: tuple[Any, ...] = ()
    call: int = -1
    shape: tuple[int, ...] = (2, 3, 16, 16)
    modes: tuple[bool, ...] = (False, True)

    def model(self, train: bool) -> nn.Module:
        """Build it; the same weights every time."""
        torch.manual_seed(7)
        return self.build().double().train(train)

    def images(self, seed: int = 0) -> Tensor:
        """Draw a batch; the same for the same seed."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    @property
    def spot(self) -> str:
        """The layer with the place of the code in what it returns, as a user writes it."""
        return self.layer + "".join(f"[{key!r}]" for key in self.path)


def halved(code: Tensor) -> Tensor:
    return code * 0.5


def unchanged(code: Tensor) -> Tensor:
    return code


def oracle(case: Case, train: bool, change: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Any, Tensor]:
    """Run a fresh model, seeded alike, with the code changed as the layer returns it."""
    model = case.model(train)
    seen = change_code(model, case.layer, case.path, number_of_the_call(case, train), change)
    seed_all(0)
    output = model(case.images())
    assert seen.code is not None
    return model, output, seen.code


def number_of_the_call(case: Case, train: bool) -> int:
    if case.call >= 0:
        return case.call
    model = case.model(train)
    seen = change_code(model, case.layer, case.path, None, unchanged)
    seed_all(0)
    model(case.images())
    return seen.calls + case.call


CASES: dict[str, Case] = {}


def hostile(layer: str, **options: Any) -> Callable[[Any], Any]:
    """Enter a model into the table under its own name."""

    def enter(build: Any) -> Any:
        CASES[build.__name__] = Case(build, layer, **options)
        return build

    return enter


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1)


class Base(nn.Module):
    """The parts that most rows are put together from: a stem, a code at half the size, a decoder, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.code = conv(4, 6, 2)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.head = nn.Conv2d(4, 2, 1)


@hostile("code")
class SkipConnection(Base):
    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x))
        return self.head(self.up(F.relu(self.code(a))) + a)


@hostile("code")
class StatementActivation(Base):
    """`self.relu(a)` changes `a`, and nobody takes what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        self.relu(a)
        z = self.code(a)
        return self.head(self.up(z) * a)


@hostile("code")
class ActivationBehindTheTap(Base):
    """What follows changes the code in place."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.code(self.stem(x))
        z += 1
        return self.head(self.up(self.relu(z)))


@hostile("code")
class AliasingIdentity(Base):
    """`a` and `b` are one memory under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.identity = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = self.identity(a)
        a += self.up(self.code(b * 1))
        return self.head(a * b.tanh())


@hostile("code")
class AliasingViews(Base):
    """Two calls return views of one memory, and one of them is changed afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Half(0)
        self.second = Half(1)
        self.whole = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        low, high, whole = self.first(a), self.second(a), self.whole(a)
        z = self.up(self.code(a * 1))
        high.mul_(2)
        low += z[:, :2]
        return self.head(whole + z) * low.mean() * high.mean()


class Half(nn.Module):
    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 2 * self.which : 2 * self.which + 2]


@hostile("encoder.code")
class SharedActivation(nn.Module):
    """One activation serves encoder and decoder: whose call is the third?"""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.LeakyReLU(0.1, inplace=True)
        self.encoder = SharedEncoder(self.relu)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, z = self.encoder(x)
        y = self.relu(self.up(self.relu(z)))
        return self.relu(self.head(self.relu(y * a)))


class SharedEncoder(nn.Module):
    def __init__(self, relu: nn.Module) -> None:
        super().__init__()
        self.stem, self.code, self.relu = conv(3, 4), conv(4, 6, 2), relu

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.relu(self.stem(x))
        a = self.relu(a * 2 - 1)
        return a, self.code(a)


@hostile("relu", call=3)
class SharedBlock(nn.Module):
    """A block and an activation are called six times; the code is the activation's fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.relu, self.head = conv(3, 4), conv(4, 4), nn.ReLU(), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept = []
        for _ in range(6):
            x = self.relu(self.block(x)) + 0.1 * x
            kept.append(x)
        return self.head(kept[-1] + kept[0] * kept[2])


@hostile("code")
class InputChangedInPlace(Base):
    """The input is normalised where it stands."""

    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean((2, 3), keepdim=True)
        x /= x.std((2, 3), keepdim=True)  # no graph leads through an input that needs no gradient
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a) * x[:, :2]


@hostile("code")
class FunctionalDropout(Base):
    """Random numbers are drawn between modules, before the code and behind it."""

    def forward(self, x: Tensor) -> Tensor:
        a = F.dropout(self.stem(x), 0.4, training=self.training)
        z = self.code(F.dropout(a, 0.4, training=self.training))
        y = F.dropout(self.up(z), 0.4, training=self.training)
        return self.head(y + a)


@hostile("encoder")
class DropoutInEncoder(nn.Module):
    """Random numbers are drawn in what is skipped, and again behind the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 4, 2), nn.Dropout(0.3), FunctionalDrop(), conv(4, 6, 2))
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=4), nn.Dropout2d(0.3), FunctionalDrop(), conv(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class FunctionalDrop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)


@hostile("code")
class OtherRandomStreams(Base):
    """Python's and NumPy's streams decide too."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x) * (1 + random.random())
        z = self.code(a + float(np.random.rand()))  # noqa: NPY002
        return self.head(self.up(z) * random.random() + a * float(np.random.rand()))  # noqa: NPY002


@hostile("code")
class PlusEqualsOnRecord(Base):
    """The first replay spoils the record for the second."""

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        a += self.up(self.code(a * 1))
        a.relu_()
        return self.head(a)


@hostile("code")
class InPlaceBetweenModules(Base):
    """Functional `relu_` and `+=` on what modules returned, before the code and after."""

    def __init__(self) -> None:
        super().__init__()
        self.side = conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        a *= 2
        b = self.side(x)
        b += a
        z = self.code(F.relu_(b))
        a += self.up(z)
        return self.head(F.relu_(a) * b)


class Pyramid(nn.Module):
    """Returns its features in a container; three sizes, the code last."""

    def __init__(self, pack: Callable[[list[Tensor]], Any] = list) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 4), conv(4, 6, 2), conv(6, 8, 2)])
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        features = []
        for stage in self.stages:
            x = F.relu(stage(x))
            features.append(x)
        return self.pack(features)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up2, self.up1, self.head = nn.ConvTranspose2d(8, 6, 2, 2), nn.ConvTranspose2d(6, 4, 2, 2), conv(4, 2)

    def forward(self, a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        return self.head(self.up1(self.up2(z) + b) + a)


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


for _kind, (_, _, _path) in PACKS.items():
    CASES[f"Returns_{_kind}"] = Case(lambda kind=_kind: Packed(kind), "encoder", path=_path)


@hostile("blocks")
class TokensWithPrefix(nn.Module):
    """A code of tokens, one of them no site."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.head = nn.ConvTranspose2d(8, 2, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = self.blocks(torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1))
        grid = tokens[:, 1:].mT.unflatten(2, (4, 4))
        return self.head(grid) + tokens[:, :1].mean()


@hostile("encoder")
class ChannelsLast(nn.Module):
    """A code [B, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder, self.head = conv(3, 4, 2), nn.Linear(4, 6), nn.ConvTranspose2d(6, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(self.stem(x).permute(0, 2, 3, 1))
        return self.head(z.permute(0, 3, 1, 2))


@hostile("code")
class FrozenEncoder(SkipConnection):
    """Nothing up to the code requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem.requires_grad_(False)
        self.code.requires_grad_(False)


@hostile("code")
class EncoderWithoutGraph(Base):
    """The encoder runs under no_grad, whatever its parameters want."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            a = F.relu(self.stem(x))
            z = self.code(a)
        return self.head(self.up(z) + a)


@hostile("code")
class FrozenModel(SkipConnection):
    """Nothing at all requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


@hostile("code")
class OldSpectralNorm(Base):
    """Weights recomputed by a hook from vectors that move with every pass in train mode."""

    def __init__(self) -> None:
        super().__init__()
        for module in (self.stem, self.code, self.head):
            nn.utils.spectral_norm(module)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a)


@hostile("code")
class NewSpectralNorm(Base):
    """The same by parametrization."""

    def __init__(self) -> None:
        super().__init__()
        for module in (self.stem, self.code, self.head):
            nn.utils.parametrizations.spectral_norm(module)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a)


class MovingAverage(nn.Module):
    """Subtracts a mean that moves in train mode; in place, or as a new tensor each time."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            new = self.mean * 0.9 + x.detach().mean() * 0.1
            if self.in_place:
                self.mean.copy_(new)
            else:
                self.mean = new
        return x - self.mean


class WithAverages(Base):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.last = MovingAverage(in_place), MovingAverage(in_place)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(self.stem(x))
        return self.head(self.last(self.up(self.code(a))) + a)


CASES["AverageInPlace"] = Case(lambda: WithAverages(True), "code")
CASES["AverageReassigned"] = Case(lambda: WithAverages(False), "code")


class Normalised(Base):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([norm(4), norm(6), norm(4)])

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.norms[0](self.stem(x)))
        z = F.relu(self.norms[1](self.code(a)))
        return self.head(F.relu(self.norms[2](self.up(z))) + a)


CASES["BatchNorm"] = Case(lambda: Normalised(nn.BatchNorm2d), "norms.1")
CASES["BatchNormWithoutMomentum"] = Case(lambda: Normalised(lambda n: nn.BatchNorm2d(n, momentum=None)), "norms.1")
CASES["InstanceNormThatTracks"] = Case(
    lambda: Normalised(lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True)), "norms.1"
)


@hostile("cell")
class Recurrent(nn.Module):
    """A cell is called step by step; the last call counts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cell, self.head = conv(3, 4), conv(8, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = torch.zeros_like(x)
        states = []
        for _ in range(3):
            h = self.cell(torch.cat([x, h], 1)).tanh()
            states.append(h)
        return self.head(sum(states))


CASES["RecurrentInTheMiddle"] = Case(Recurrent, "cell", call=1)


class Siamese(nn.Module):
    """One encoder sees two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Pyramid(), Decoder()

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.encoder(x), self.encoder(x.flip(-1))
        return self.decoder(*(a - b * 0.5 for a, b in zip(first, second, strict=True)))


CASES["SiameseFirst"] = Case(Siamese, "encoder", path=(2,), call=0)
CASES["SiameseLast"] = Case(Siamese, "encoder", path=(2,))


@hostile("code")
class CheckpointedEncoder(Base):
    """Recomputed in the backward pass, when nothing stands in for anything any more."""

    def forward(self, x: Tensor) -> Tensor:
        a = checkpoint(self.stem, x, use_reentrant=False)
        return self.head(self.up(self.code(a)) + a)


@hostile("code", fast=False)
class CheckpointedFunction(Base):
    """A checkpointed function mixes a module with saved results of its own."""

    def forward(self, x: Tensor) -> Tensor:
        a = checkpoint(lambda x: self.stem(x).exp().sin(), x, use_reentrant=False)
        return self.head(self.up(self.code(a)) + a)


@hostile("code")
class CheckpointedDecoder(Base):
    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        y = checkpoint(lambda z, a: F.relu(self.up(z)) + a, self.code(a), a, use_reentrant=False)
        return checkpoint(self.head, y, use_reentrant=False)


@hostile("stem")
class CheckpointedBlockIsTapped(Base):
    """The block itself is checkpointed, and nothing else is in the region."""

    def forward(self, x: Tensor) -> Tensor:
        a = checkpoint(self.stem, x, use_reentrant=False)
        return self.head(self.up(self.code(a)) + a)


@hostile("code")
class ScriptedParts(Base):
    """Submodules that Python cannot look into."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # scripting is deprecated, but scripted models are around
            self.pre = torch.jit.script(nn.Sequential(conv(3, 3), nn.ReLU()))
            self.code = torch.jit.script(nn.Sequential(conv(4, 6, 2), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(self.pre(x))
        return self.head(self.up(self.code(a)) + a)


@hostile("code")
class ReturnsItsInput(Base):
    """A call returns what it was given, and that is changed in place later."""

    def __init__(self) -> None:
        super().__init__()
        self.split = Split()

    def forward(self, x: Tensor) -> Tensor:
        given, doubled = self.split(self.stem(x))
        z = self.code(doubled)
        given.mul_(doubled)
        return self.head(self.up(z) + given)


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x * 2


@hostile("code")
class TiedWeights(Base):
    """One module before the code and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.stem_like = conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.again(self.stem(x))
        y = self.up(self.code(a))
        return self.head(self.stem_like(self.again(y)) + a)


@hostile("code")
class LossInTheOutput(Base):
    """Logits, a loss that may be missing, and deep supervision."""

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        a = self.stem(x)
        y = self.up(self.code(a))
        return self.head(y + a), y.square().mean() if self.training else None, [self.head(a), self.head(y)]


@hostile("encoder", path=(1,), fast=False)
class CodeBesideItsInput(nn.Module):
    """The tapped module hands its input through, and that is changed in place later."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder = conv(3, 4), Through()
        self.up, self.head = nn.ConvTranspose2d(6, 4, 2, 2), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        through, z = self.encoder(a)
        through.mul_(self.up(z))
        return self.head(a + 1)


class Through(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = conv(4, 6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.down(x * 2)


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


def with_skip(change: Callable[[Base], None]) -> Callable[[], Base]:
    """Build the plain network with a skip connection, changed by its user."""

    def build() -> Base:
        model = SkipConnection()
        change(model)
        return model

    return build


def parts(model: Base) -> list[nn.Module]:
    return [model.stem, model.code, model.up, model.head]


class Squash(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


def weight_norms(model: Base) -> None:
    for part in parts(model):
        nn.utils.parametrizations.weight_norm(part)


def old_weight_norms(model: Base) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but such models are around
        for part in parts(model):
            nn.utils.weight_norm(part)


def squashed_weights(model: Base) -> None:
    for part in parts(model):
        nn.utils.parametrize.register_parametrization(part, "weight", Squash())


class Adapted(nn.Module):
    """A frozen layer with a small one beside it that learns."""

    def __init__(self, frozen: nn.Conv2d) -> None:
        super().__init__()
        self.frozen, self.drop = frozen.requires_grad_(False), nn.Dropout(0.2)
        self.down = nn.Conv2d(frozen.in_channels, 2, 1, frozen.stride)
        self.up = nn.Conv2d(2, frozen.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.up(self.down(self.drop(x)))


def adapters(model: Base) -> None:
    model.stem, model.code = Adapted(model.stem), Adapted(model.code)


def forwards_of_ones_own(model: Base) -> None:
    whole, code = model.forward, model.code.forward
    model.forward = lambda x: whole(x) * 2  # type: ignore[method-assign]
    model.code.forward = lambda x: code(x) + 1  # type: ignore[method-assign]


def hooks_that_change(model: Base) -> None:
    """Hooks see, and change, what goes into every module and what comes out."""
    for module in (model, *parts(model)):
        module.register_forward_pre_hook(lambda module, args: (args[0] * 2 + 1,))
        module.register_forward_hook(lambda module, args, output: output.clamp(-0.8, 0.8))


def hooks_that_draw(model: Base) -> None:
    """Hooks take random numbers, also before the model's forward begins."""
    for module in (model, *parts(model)):
        module.register_forward_pre_hook(lambda module, args: (F.dropout(args[0], 0.2),))
        module.register_forward_hook(lambda module, args, output: F.dropout(output, 0.2))


def backward_hooks(model: Base) -> None:
    """Gradients are counted on their way out of a module, and changed on their way in."""
    for module in (model, *parts(model)):
        module.register_full_backward_pre_hook(lambda module, grads: tuple(grad * 2 for grad in grads))
    model.middle.register_full_backward_hook(lambda module, grads, _: tuple(grad * 3 for grad in grads))


class WithMiddle(Base):
    """Something stands between stem and code whose gradients a hook changes."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Sequential(conv(4, 4), nn.Tanh())
        backward_hooks(self)

    def forward(self, x: Tensor) -> Tensor:
        a = self.middle(self.stem(x))
        return self.head(self.up(F.relu(self.code(a))) + a)


CASES["WeightNorm"] = Case(with_skip(weight_norms), "code")
CASES["OldWeightNorm"] = Case(with_skip(old_weight_norms), "code")
CASES["SquashedWeights"] = Case(with_skip(squashed_weights), "code")
CASES["Adapters"] = Case(with_skip(adapters), "code")
CASES["InsideAnAdapter"] = Case(with_skip(adapters), "code.frozen")
CASES["ForwardsOfOnesOwn"] = Case(with_skip(forwards_of_ones_own), "code")
CASES["HooksThatChange"] = Case(with_skip(hooks_that_change), "code")
CASES["HooksThatDraw"] = Case(with_skip(hooks_that_draw), "code")
CASES["BackwardHooks"] = Case(WithMiddle, "code")


@hostile("spectrum")
class ComplexCode(nn.Module):
    """The code is a spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.spectrum, self.head = conv(3, 4), Spectrum(), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(torch.fft.irfft2(self.spectrum(a), s=x.shape[2:]) + a)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x) * self.scale


@hostile("code")
class ReturnsItsWeight(Base):
    """A call returns a weight itself, before the code and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = Positions()

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x) + self.positions())
        return self.head(self.up(self.code(a)) + a * self.positions())


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 16, 16))

    def forward(self) -> Tensor:
        return self.weight


@hostile("code", path=(0,))
class CodeIsAView(nn.Module):
    """Mean and log variance are two halves of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.up = Halves(), nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.code(x)
        return self.up(mean + torch.randn_like(mean) * variance.exp())


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).chunk(2, 1)


@hostile("code")
class CodeIsExpanded(Base):
    """The code's channels are one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.code = OneForAll()

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        return self.head(self.up(self.code(a)) + a)


class OneForAll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).expand(-1, 6, -1, -1)
