"""Random segmentation networks, each from a seed: U-Nets and chains in 2-D and 3-D, and networks of tokens.

`network(Random(seed))` draws one. A network is a program: a list of steps that its `forward` runs one after the other,
so that printing it shows what it does. Any stream of random numbers will do, hypothesis's too.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.campaigns import memory, pieces
from tests.campaigns.memory import Fetch, Stash, remembering
from tests.campaigns.programs import GLUE, Program


# Growing --------------------------------------------------------------------------------------------------------------
class Grower:
    """Draws networks of some number of axes, from one random stream."""

    def __init__(self, rng: Random, dims: int) -> None:
        self.rng, self.dims = rng, dims
        self.blocks: list[tuple[int, nn.Module]] = []

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def block(self, given: int, returned: int | None = None, depth: int = 0) -> nn.Module:
        """Draw a block that keeps the size; those that keep the channels too are of many kinds."""
        rng, dims = self.rng, self.dims
        returned = returned or given
        if given != returned:
            return self._wrapped(pieces.conv_block(rng, dims, given, returned))
        same = [module for channels, module in self.blocks if channels == given]
        if same and self.chance(0.08):
            return rng.choice(same)  # weights that are shared
        inner = lambda: self.block(given, depth=depth + 1)  # noqa: E731
        kinds: list[Callable[[], nn.Module]] = [lambda: pieces.conv_block(rng, dims, given, given)] * 3
        kinds += [
            lambda: pieces.Excite(given, self.chance(0.5)),
            lambda: pieces.Attention(given, rng.choice(["module", "function", "plain"]), tokens=False),
        ]
        if depth < 2:
            kinds += [
                lambda: pieces.Residual(inner(), rng.choice(["in place", "depth", "scaled", "scaled"])),
                lambda: pieces.Recurrent(inner(), rng.choice([2, 3])),
                lambda: pieces.Parallel([inner(), inner()], rng.choice(["mean", "choice"])),
                lambda: nn.Sequential(inner(), inner()),
                lambda: pieces.Dense(
                    [pieces.conv_block(rng, dims, given * (i + 1), given) for i in range(2)],
                    pieces.conv(rng, dims, 3 * given, given, 1),
                ),
            ]
        made = self._wrapped(rng.choice(kinds)())
        self.blocks.append((given, made))
        return made

    def _wrapped(self, block: nn.Module) -> nn.Module:
        kind = self.rng.random()
        if kind < 0.04:
            return pieces.Frozen(block, self.rng.choice(["no_grad", "detached", "weights"]))
        if kind < 0.07 and pieces.is_repeatable(block):
            return pieces.Checkpointed(block)
        if kind < 0.14:
            return pieces.Named(block, self.rng.choice(["list", "dict", "tuple"]))
        if kind < 0.17:
            return memory.Collected(block)
        return block

    def extras(self, program: Program, value: str = "x", chance: float = 0.3) -> None:
        """Put something small after a block: functions, dropout, memory."""
        if self.chance(chance):
            program.do(self.rng.choice(GLUE), value, value)
        if self.chance(chance / 3):
            program.add(pieces.drop(self.rng, self.dims), value, value)
        if self.chance(chance / 3):
            program.add(remembering(self.rng), value, value)

    def down(self, given: int, returned: int) -> nn.Module:
        """Draw what halves the size."""
        kinds: list[Callable[[], nn.Module]] = [
            lambda: pieces.CONVS[self.dims](given, returned, 3, 2, 1),
            lambda: nn.Sequential(pieces.POOL[self.dims](2), pieces.conv_block(self.rng, self.dims, given, returned)),
            lambda: nn.Sequential(pieces.CONVS[self.dims](given, returned, 2, 2), pieces.activation(self.rng)),
        ]
        return self.rng.choice(kinds)()

    def up(self, given: int, returned: int) -> nn.Module:
        """Draw what doubles the size, or leaves that to what follows."""
        kinds: list[Callable[[], nn.Module]] = [
            lambda: pieces.TRANSPOSED[self.dims](given, returned, 2, 2),
            lambda: nn.Sequential(nn.Upsample(scale_factor=2), pieces.conv(self.rng, self.dims, given, returned)),
            lambda: pieces.conv(self.rng, self.dims, given, returned, 1),
        ]
        return self.rng.choice(kinds)()

    # Networks ---------------------------------------------------------------------------------------------------------

    def unet(self, channels: int, classes: int, depth: int) -> Program:
        """Draw a U-Net, or without skips a chain: flat, or of an encoder and a decoder that pass features."""
        rng = self.rng
        nested = self.chance(0.4)
        net = Program(("images",), ("out",))
        net.do(rng.choice(["same", "same", "same", "standardised", "standardised in place"]), "images", "x")
        encoder = Program(("x",), (), rng.choice(["list", "tuple", "dict"])) if nested else net
        widths = [4 + 2 * level for level in range(depth + 1)]
        stashes: list[tuple[int, Stash]] = []
        for level, width in enumerate(widths):
            encoder.add(
                pieces.conv(rng, self.dims, channels, width) if level == 0 else self.down(widths[level - 1], width)
            )
            for _ in range(rng.choice([1, 1, 2])):
                encoder.add(self.block(width))
                self.extras(encoder)
            if self.chance(0.12):
                stashes.append((width, Stash(rng.choice(["kept", "once", "list", "copy"]))))
                encoder.add(stashes[-1][1])
            encoder.do("same", "x", f"s{level}")
        if self.chance(0.2):
            self.bridge(encoder, widths[-1])
        encoder.do("same", "x", f"s{depth}")
        decoder = net
        if nested:
            names = tuple(f"s{level}" for level in range(depth + 1))
            encoder.returned = names
            if encoder.container == "dict" or self.chance(0.4):
                net.add(encoder, "x", " ".join(names), name="encoder")
                net.do("same", f"s{depth}", "x")
            else:
                net.add(encoder, "x", "features", name="encoder")
                decoder = Program(("features",), ("x",))
                decoder.do("last of", "features", "x")
                if encoder.container == "list":
                    for level in reversed(range(depth)):
                        decoder.do("last of", "features", f"s{level}")
                else:
                    decoder.do("same", "features", " ".join(names))
        aux = self._decode(decoder, widths, stashes)
        if decoder is not net:
            decoder.returned, decoder.container = ("x", *aux), "tuple" if aux else "tensor"
            net.add(decoder, "features", " ".join(("x", *aux)), name="decoder")
        self._finish(net, widths[0], classes, aux)
        return net

    def _decode(self, decoder: Program, widths: list[int], stashes: list[tuple[int, Stash]]) -> list[str]:
        rng, aux = self.rng, []
        self._fetch(decoder, stashes, widths[-1])
        for level in reversed(range(len(widths) - 1)):
            width = widths[level]
            decoder.add(self.up(widths[level + 1], width))
            how = rng.choice(["cat", "cat", "plus", "plus", "plus in place", "plus in place, other", "times", "none"])
            if how == "none":
                decoder.do("pooled up", f"x s{level}", "x")
            else:
                decoder.do(how, f"x s{level}", "x")
            if how == "cat":
                decoder.add(pieces.conv_block(rng, self.dims, 2 * width, width))
            self._fetch(decoder, stashes, width)
            if self.chance(0.6):
                decoder.add(self.block(width))
            self.extras(decoder)
            if self.chance(0.15):
                decoder.do("same", "x", f"aux{level}")
                aux.append(f"aux{level}")
        return aux

    def _fetch(self, decoder: Program, stashes: list[tuple[int, Stash]], width: int) -> None:
        for stashed, stash in stashes:
            if stashed == width:
                decoder.add(Fetch(stash))

    def bridge(self, program: Program, width: int) -> None:
        """Draw attention at the deepest code: tokens, and back."""
        program.do("tokens", "x", "t")
        for _ in range(self.rng.choice([1, 2])):
            program.add(self.token_block(width), "t", "t")
        program.do("map of", "t x", "x")

    def token_block(self, width: int) -> nn.Module:
        """Draw a block on tokens."""
        rng = self.rng
        kinds: list[Callable[[], nn.Module]] = [
            lambda: nn.TransformerEncoderLayer(
                width, 2, 2 * width, dropout=rng.choice([0.0, 0.1]), batch_first=True, norm_first=self.chance(0.5)
            ),
            lambda: pieces.Attention(width, rng.choice(["module", "function", "plain"]), tokens=True),
            lambda: nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), drop_of(rng), nn.Linear(2 * width, width)
            ),
            lambda: pieces.Residual(
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), activation_of(rng)),
                rng.choice(["in place", "scaled", "depth"]),
            ),
            lambda: First(nn.GRU(width, width, batch_first=True)),
        ]
        return rng.choice(kinds)()

    def tokens(self, channels: int, classes: int) -> Program:
        """Draw a network of tokens: patches, blocks, and a decoder of maps."""
        rng, width = self.rng, 8
        net = Program(("images",), ("out",))
        net.add(pieces.CONVS[self.dims](channels, width, 4, 4), "images", "patches", name="embed")
        net.do("tokens", "patches", "t")
        net.add(Positions(width, prefix=rng.choice([0, 0, 1])), "t", "t", name="positions")
        for index in range(rng.choice([1, 2, 3])):
            net.add(self.token_block(width), "t", "t", name=f"block{index}")
            if self.chance(0.3):
                net.do(rng.choice(["relu", "add_", "dropout", "gate", "noise", "instance"]), "t", "t")
            if self.chance(0.2):
                net.add(remembering(rng), "t", "t")
            if index == 0:
                net.do("same", "t", "early")
        if self.chance(0.4):
            net.do(rng.choice(["sum", "sum in place"]), "t early", "t")
        net.do("map of", "t patches", "x")
        net.add(pieces.TRANSPOSED[self.dims](width, 4, 2, 2), name="up")
        self.extras(net)
        net.add(nn.Sequential(nn.Upsample(scale_factor=2), pieces.conv(rng, self.dims, 4, 4)), name="up2")
        self._finish(net, 4, classes, [])
        return net

    def _finish(self, net: Program, width: int, classes: int, aux: list[str]) -> None:
        net.add(pieces.CONVS[self.dims](width, classes, 1), "x", "out", name="head")
        if self.chance(0.1):
            net.do(self.rng.choice(["relu_", "gate", "tanh"]), "out", "out")
        net.container = self.rng.choice(["tensor"] * 5 + ["tuple", "list", "dict", "dataclass", "namedtuple"])
        net.returned = ("out",) if net.container == "tensor" else ("out", *aux, *(["x"] if self.chance(0.3) else []))


class First(nn.Module):
    """Takes the first of what a recurrent layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Positions(nn.Module):
    """Adds codes of positions, drawn when first seen, and tokens in front."""

    def __init__(self, width: int, prefix: int) -> None:
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(1, prefix, width, dtype=torch.float64))
        self.table: dict[int, Tensor] = {}

    def forward(self, t: Tensor) -> Tensor:
        count = t.shape[1]
        if count not in self.table:
            steps = torch.arange(count, dtype=t.dtype)
            self.table[count] = torch.stack([(steps / (i + 1)).sin() for i in range(t.shape[2])], 1)
        prefix = self.prefix.to(t).expand(len(t), -1, -1)
        return torch.cat([prefix, t + self.table[count].to(t)], 1)


def drop_of(rng: Random) -> nn.Module:
    """Draw a dropout of tokens."""
    return pieces.drop(rng)


def activation_of(rng: Random) -> nn.Module:
    """Draw an activation of tokens."""
    return rng.choice([nn.GELU(), nn.ReLU(inplace=True), nn.SiLU()])


class Network(NamedTuple):
    """A random network, with what it takes."""

    model: Program
    shape: tuple[int, ...]  # of its images


def network(rng: Random) -> Network:
    """Draw a network in float64; weights too, so that PyTorch's own stream is seeded by it."""
    torch.manual_seed(rng.randrange(2**31))
    dims = 3 if rng.random() < 0.2 else 2
    grower, channels, classes = Grower(rng, dims), rng.choice([1, 3]), rng.choice([1, 2, 4])
    side = 8 if dims == 3 else rng.choice([16, 16, 24, 64])
    if rng.random() < 0.2:
        model = grower.tokens(channels, classes)
    else:
        model = grower.unet(channels, classes, depth=rng.choice([1, 2]) if dims == 3 or rng.random() < 0.6 else 3)
    size = (side, *(side,) * (dims - 2), side if side == 64 else side + rng.choice([0, 8]))
    return Network(model.double(), (rng.choice([2, 3, 4]), channels, *size))
