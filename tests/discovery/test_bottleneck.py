"""Where the codes of a model are: by name, by shape, and by looking."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from latentaug.discovery.bottleneck import find_bottleneck
from latentaug.discovery.codes import find_codes
from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, TOKENS, Layout
from latentaug.tap.describe import Description, describe
from latentaug.tap.latent_tap import LatentTap
from latentaug.tracing.infer_layout import infer_layout
from latentaug.tracing.location import Location, as_inputs, find_spot, image_in, spot_in, unwrap
from tests.models.hostile import CASES, conv, random_state, traces

# Layouts ----------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.sampled_from([32, 48, 64, 80, 96]), min_size=1, max_size=3).map(tuple)
STRIDES = st.sampled_from([2, 4, 8, 16])


@given(SIZES, STRIDES, st.integers(1, 4), st.integers(100, 700))
def test_channels_first_is_read_off_the_shape(size: tuple[int, ...], stride: int, batch: int, channels: int) -> None:
    """Strided convolutions round up."""
    shape = (batch, channels, *(-(-s // stride) for s in size))
    assert infer_layout(shape, (batch, 3, *size)) == (CHANNELS_FIRST, (stride,) * len(size))


@given(SIZES, STRIDES, st.integers(1, 4), st.integers(100, 700))
def test_channels_last_is_read_off_the_shape(size: tuple[int, ...], stride: int, batch: int, channels: int) -> None:
    if len(size) == 1:
        return  # [B, N, C]: tokens
    shape = (batch, *(s // stride for s in size), channels)
    assert infer_layout(shape, (batch, 3, *size)) == (CHANNELS_LAST, (stride,) * len(size))


@given(
    st.sampled_from([(32, 32), (64, 64), (32, 64), (32, 32, 32)]),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([0, 1, 2]),
    st.integers(300, 700),
)
def test_tokens_are_read_off_their_number(size: tuple[int, ...], stride: int, prefix: int, channels: int) -> None:
    shape = (2, prefix + math.prod(s // stride for s in size), channels)
    assert infer_layout(shape, (2, 3, *size)) == (Layout(-1, prefix), (stride,) * len(size))


@pytest.mark.parametrize(
    ("shape", "image", "expected"),
    [
        ((2, 8, 4, 4), (2, 3, 8, 8), (CHANNELS_FIRST, (2, 2))),
        ((2, 4, 4, 4), (2, 3, 8, 8), (CHANNELS_FIRST, (2, 2))),  # a tie
        ((2, 2, 3, 192), (2, 3, 64, 96), (CHANNELS_LAST, (32, 32))),
        ((2, 192, 2, 3), (2, 3, 64, 96), (CHANNELS_FIRST, (32, 32))),
        ((2, 16, 2, 8, 6), (2, 1, 8, 64, 48), (CHANNELS_FIRST, (4, 8, 8))),
        ((2, 16, 48), (2, 1, 64, 64), (TOKENS, (16, 16))),
        ((2, 48, 16), (2, 1, 64, 64), (CHANNELS_FIRST, (16, 16))),
        ((2, 21, 48), (2, 1, 64, 64), (Layout(-1, 5), (16, 16))),
        ((2, 9, 48), (2, 1, 47, 47), (TOKENS, (16, 16))),  # rounded up
        ((2, 25, 32), (2, 1, 64, 64), (Layout(-1, 9), (16, 16))),
        ((2, 16, 4, 5), (2, 1, 50, 71), (CHANNELS_FIRST, (16, 16))),  # padded, or rounded down and up
        ((2, 16, 3, 4), (2, 1, 50, 70), (CHANNELS_FIRST, (16, 16))),
        ((2, 16, 5, 5), (2, 1, 70, 70), (CHANNELS_FIRST, (14, 14))),  # divides, and so is likelier than 16
        ((2, 16, 2, 4), (2, 1, 64, 96), (CHANNELS_FIRST, (32, 24))),
        ((1, 32, 13), (1, 1, 100), (CHANNELS_FIRST, (8,))),
        ((2, 8), (2, 3, 64, 64), None),
        ((4, 8, 4, 4), (2, 3, 64, 64), None),
        ((2, 8, 128, 128), (2, 3, 64, 64), None),
        ((2, 13, 14), (2, 3, 64, 64), None),
        ((2, 3, 4, 5, 6), (2, 3, 64, 64), None),
        ((2, 8, 4), (2, 8), None),
        ((2, 8, 4), (), None),
    ],
)
def test_layouts_by_hand(shape: tuple[int, ...], image: tuple[int, ...], expected: Any) -> None:
    assert infer_layout(shape, image) == expected


def test_a_location_knows_its_grid_and_its_name() -> None:
    assert Location("encoder", (5,), CHANNELS_FIRST, (2, 512, 2, 3), (32, 32)).grid == (2, 3)
    assert Location("encoder", (), CHANNELS_LAST, (2, 2, 3, 512), (32, 32)).grid == (2, 3)
    assert Location("vit", (0,), TOKENS, (2, 16, 48), (16, 16)).grid == (16,)
    assert str(Location("backbone", ("out",), CHANNELS_FIRST, (), ())) == "backbone['out']"
    assert str(Location("a.b", (1, "x"), CHANNELS_FIRST, (), ())) == "a.b[1]['x']"


# Inputs -----------------------------------------------------------------------------------------------------------


def test_examples_are_read_as_arguments() -> None:
    x = torch.zeros(1)
    assert as_inputs(x) == ((x,), {})
    assert as_inputs((x, 2)) == ((x, 2), {})
    assert as_inputs({"image": x}) == ((), {"image": x})


def test_the_image_is_the_first_that_may_be_one() -> None:
    image, labels, vector = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.long), torch.zeros(2, 5)
    assert image_in([vector, labels, {"image": image}]) is image
    assert image_in([vector, labels]) is labels
    assert image_in([vector, "text"]) is None
    words = torch.zeros(2, 7, 16)
    assert image_in({"words": words, "image": image}) is image


# Names ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nested() -> nn.Module:
    return nn.Sequential(
        OrderedDict(encoder=nn.Sequential(OrderedDict(layer3=nn.Conv2d(1, 1, 1), layer4=nn.ReLU())), head=nn.ReLU())
    )


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("encoder", ("encoder", None)),
        ("encoder.layer4", ("encoder.layer4", None)),
        ("encoder[5]", ("encoder", (5,))),
        ("encoder[-1]", ("encoder", (-1,))),
        ("encoder['out']", ("encoder", ("out",))),
        ('encoder["out"]', ("encoder", ("out",))),
        ("encoder[out][0]", ("encoder", ("out", 0))),
        ("encoder.layer3[0]['a']", ("encoder.layer3", (0, "a"))),
        ("module.encoder", ("encoder", None)),
        ("_orig_mod.encoder[1]", ("encoder", (1,))),
        ("", ("", None)),
        (Location("encoder", (2,), CHANNELS_FIRST, (), ()), ("encoder", (2,))),
        (Location("", (), CHANNELS_FIRST, (), ()), ("", ())),
    ],
    ids=str,
)
def test_layers_are_found_by_name(nested: nn.Module, layer: Any, expected: Any) -> None:
    assert find_spot(nested, layer) == expected


def test_layers_are_found_by_identity(nested: nn.Module) -> None:
    assert find_spot(nested, nested.encoder.layer4) == ("encoder.layer4", None)
    assert find_spot(nested, nested) == ("", None)


def test_a_module_under_two_names_has_one() -> None:
    model = nn.Module()
    model.first = model.second = nn.ReLU()
    assert find_spot(model, "second") == find_spot(model, "first") == ("first", None)


def test_a_real_submodule_called_module_goes_first() -> None:
    model = nn.Sequential(OrderedDict(conv=nn.ReLU(), module=nn.Sequential(OrderedDict(conv=nn.Tanh()))))
    assert find_spot(model, "module.conv") == ("module.conv", None)
    assert find_spot(model, "conv") == ("conv", None)


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (
            "encoder.layr4",
            ValueError,
            r"no submodule 'encoder.layr4' in Sequential; closest: 'encoder.layer4', 'encoder",
        ),
        ("encodr[5]", ValueError, r"no submodule 'encodr' in Sequential; closest: 'encoder'"),
        ("qqqqqq", ValueError, r"no submodule 'qqqqqq' in Sequential. Pass one of its names, or the module itself."),
        (nn.ReLU(), ValueError, r"needs a submodule of Sequential; got another ReLU"),
        (5, TypeError, r"needs a dotted name, a module, a Location or None; got int"),
    ],
    ids=str,
)
def test_unknown_layers_are_named_with_their_likes(
    nested: nn.Module, layer: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        find_spot(nested, layer)


def test_places_are_completed_from_the_output() -> None:
    a, b = torch.zeros(1), torch.zeros(2)
    assert spot_in("m", None, a).path == ()
    assert spot_in("m", None, {"only": [a, None]}).path == ("only", 0)
    assert spot_in("m", (-1,), [a, b]).path == (1,)
    assert spot_in("m", (1,), [a, a]).path == (0,)  # the same tensor
    for path, output in ((None, [a, b]), ((2,), [a]), (("x",), [a]), ((0, 0), None), ((), [a]), (None, "text")):
        with pytest.raises(ValueError, match="needs one tensor"):
            spot_in("m", path, output)


def test_unwrapping_stops_at_the_users_model() -> None:
    model = nn.Sequential(nn.ReLU())
    assert unwrap(model) is model
    assert unwrap(torch.compile(model, backend="eager")) is model
    assert unwrap(nn.DataParallel(torch.compile(model, backend="eager"))) is model


# Looking ----------------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Three levels, in a list; options for the traps of the search."""

    def __init__(self, channels: tuple[int, ...] = (8, 16, 32), attention: bool = False) -> None:
        super().__init__()
        stages = [conv(a, b, 2 if i else 1) for i, (a, b) in enumerate(zip((3, *channels), channels, strict=False))]
        self.stages = nn.ModuleList(stages)
        self.squeeze = nn.Conv2d(channels[-1], channels[-1], 1) if attention else None

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = F.relu(stage(x))
            features.append(x)
        if self.squeeze is not None:
            features[-1] = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        return features


class Net(nn.Module):
    """An encoder, something in the middle, and a decoder."""

    def __init__(self, encoder: nn.Module, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.middle = middle
        self.up1, self.up2 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        *skips, x = self.encoder(x)
        if self.middle is not None:
            x = self.middle(x)
        for up in (self.up1, self.up2):
            x = F.relu(up(x)) + skips.pop()
        return self.head(x)


class PyramidPooling(nn.Module):
    """Pools to fixed bins with functions, convolves there, and adds what comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        for bins, pointwise in zip((1, 2), self.convs, strict=True):
            x = x + F.interpolate(pointwise(F.adaptive_avg_pool2d(x, bins)), size)
        return x


class KeysAndValues(nn.Module):
    """Attention whose keys and values are coarser than the code."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.query = nn.Conv2d(32, 32, 2, 2), nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, kv = self.query(x).flatten(2).mT, self.reduce(x).flatten(2).mT
        return x + ((q @ kv.mT).softmax(-1) @ kv).mT.unflatten(2, x.shape[2:])


class SmallUInTheDecoder(nn.Module):
    """A detour to a coarser grid, behind the code."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(32, 32, 2), nn.ConvTranspose2d(32, 32, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x)).sigmoid()


class UInU(nn.Module):
    """Levels that hold each other, around a bottom."""

    def __init__(self, depth: int, channels: int = 8) -> None:
        super().__init__()
        self.down = conv(channels, 2 * channels, 2)
        self.inner = UInU(depth - 1, 2 * channels) if depth > 1 else nn.Conv2d(2 * channels, 2 * channels, 1)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.inner(self.down(x)))


class LevelsOfDynUNet(nn.Module):
    """Levels that take in a finer grid than they return, as MONAI's DynUNet nests them."""

    def __init__(self) -> None:
        super().__init__()
        levels: nn.Module = conv(32, 64, 2)
        for channels in (32, 16, 8):
            levels = LevelOfDynUNet(channels, levels)
        self.levels, self.head = levels, conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.levels(x))


class LevelOfDynUNet(nn.Module):
    def __init__(self, channels: int, inner: nn.Module) -> None:
        super().__init__()
        self.down = conv(3, channels) if channels == 8 else conv(channels // 2, channels, 2)
        self.inner, self.up = inner, nn.ConvTranspose2d(2 * channels, channels, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.up(self.inner(x))


class DeadEnd(nn.Module):
    """Returns a code that nobody reads beside one that is read; both of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = conv(3, 32, 4), nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = self.body(x)
        return self.norm(hidden), [hidden]


class ReadsTheFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit, self.decoder = DeadEnd(), nn.Sequential(nn.Upsample(scale_factor=4), conv(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.vit(x)[0])


class Wrapped(nn.Module):
    """The network is one level further down, and a head refines its logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.refine = net, conv(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.refine(self.net(x))}


class SwinLike(nn.Module):
    """Features [B, H, W, C], as timm's Swin returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ChannelsLastEncoder()
        self.head = nn.Sequential(nn.ConvTranspose2d(32, 8, 8, 8), conv(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].permute(0, 3, 1, 2))


class ChannelsLastEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(3, 8, 2), conv(8, 16, 2), conv(16, 32, 2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.convs:
            x = stage(x)
            features.append(x.permute(0, 2, 3, 1))
        return features


class ContextBehind(nn.Module):
    """Strided poolings behind the code, each narrowed at once: context for a decoder, as DAPPM and PAN compute it."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.AvgPool2d(stride, stride) for stride in (2, 4))
        self.narrow = nn.ModuleList(nn.Conv2d(32, 8, 1) for _ in range(2))
        self.merge = nn.Conv2d(48, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [narrow(pool(x)) for pool, narrow in zip(self.pools, self.narrow, strict=True)]
        return self.merge(torch.cat([x, *(F.interpolate(branch, x.shape[2:]) for branch in branches)], 1))


class Flat(nn.Module):
    """Encoder, a branch behind it and decoder, all side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.enc3 = conv(3, 8, 2), conv(8, 16, 2), conv(16, 32, 2)
        self.context = ContextBehind()
        self.pool, self.thin = nn.MaxPool2d(2), nn.Conv2d(32, 4, 1)
        self.head = conv(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = self.enc3(F.relu(self.enc2(F.relu(self.enc1(x)))))
        thin = F.interpolate(self.thin(self.pool(code)), code.shape[2:])
        return F.interpolate(self.head(torch.cat([self.context(code), thin], 1)), x.shape[2:])


class Narrowing(nn.Module):
    """An autoencoder whose code is the narrowest: nothing goes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 16, 2), conv(16, 8, 2), conv(8, 4, 2)
        self.up, self.head = nn.Upsample(scale_factor=8), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.third(F.relu(self.second(F.relu(self.first(x)))))))


class SharedRelu(nn.Module):
    """One activation for encoder and decoder: what a tap on it takes is the last call's."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.relu = conv(3, 8, 2), conv(8, 16, 2), nn.ReLU()
        self.up1, self.up2 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = self.relu(self.down2(self.relu(self.down1(x))))
        return self.up2(self.relu(self.up1(code)))


class CutOff(Net):
    """The encoder is frozen by running it without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            *skips, code = self.encoder(x)
        code = code.detach()
        for up in (self.up1, self.up2):
            code = F.relu(up(code)) + skips.pop()
        return self.head(code)


class Attention(nn.Module):
    """Residual attention whose values, made last, are as wide as the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.query, self.key, self.value = (nn.Conv2d(32, channels, 1) for channels in (8, 8, 32))
        self.head = conv(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x)[-1]
        scores = self.query(code).flatten(2).mT @ F.max_pool2d(self.key(code), 4).flatten(2)
        values = F.max_pool2d(self.value(code), 4).flatten(2).mT
        return F.interpolate(
            self.head(code + (scores.softmax(-1) @ values).mT.unflatten(2, code.shape[2:])), x.shape[2:]
        )


class ResizesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net(Encoder())

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.net(F.interpolate(x, (16, 24))), x.shape[2:])


class HandsThrough(nn.Module):
    """Also returns the code of its encoder, which its decoder has used by then."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel = PixelModule()
        self.head = conv(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code, pixels = self.pixel(x)
        return {"logits": self.head(pixels) + code.mean(), "hidden": code}


class PixelModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2))
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=4), conv(32, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return code, self.decoder(code)


class ContextPath(nn.Module):
    """Goes down to a wide code, and comes up again before it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.narrow, self.refine = Encoder((8, 16, 32)), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, half, quarter = self.encoder(x)
        return self.refine(half) + F.interpolate(self.narrow(quarter), half.shape[2:])


class TwoPaths(nn.Module):
    """Detail beside context, as BiSeNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.detail, self.context, self.head = conv(3, 16, 2), ContextPath(), conv(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(torch.cat([self.detail(x), self.context(x)], 1)), x.shape[2:])


class Modulated(nn.Module):
    """A network sees the image on a coarser grid, is pooled to a vector, and scales the channels of the code."""

    def __init__(self, pool: bool) -> None:
        super().__init__()
        self.context = nn.Sequential(conv(3, 16, 4), nn.ReLU(), conv(16, 64, 4))
        self.net, self.pool = Net(Encoder(), Scaled()), nn.AdaptiveAvgPool2d(1) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        context = self.context(x)
        self.net.middle.scale = context.mean((2, 3)) if self.pool is None else self.pool(context).flatten(1)
        return self.net(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear(self.scale)[:, :, None, None]


class PooledLast(nn.Module):
    """Convolves, then pools; the block on the coarsest grid is narrower than what was pooled, as in a Tiramisu."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(conv(3, 40), nn.MaxPool2d(2))
        self.block, self.up, self.head = conv(40, 24), nn.ConvTranspose2d(24, 24, 2, 2), conv(27, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.up(self.block(self.down(x))), x], 1))


class SubPixel(nn.Module):
    """Goes up by rearranging channels, of which there have to be four times as many."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom, self.expand, self.head = conv(3, 16, 2), conv(16, 16), conv(16, 64), conv(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pixel_shuffle(self.expand(self.bottom(self.down(x))), 2))


class Unpatchify(nn.Module):
    """Tokens with a class token; the last layer is wider than they are, and its output is the logits, reordered."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Conv2d(3, 24, 8, 8), nn.Linear(24, 24), nn.Linear(24, 2 * 64)
        self.register_buffer("class_token", torch.zeros(1, 1, 24))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches.flatten(2).mT], 1)
        pixels = self.out(self.mix(tokens)[:, 1:]).mT.unflatten(2, patches.shape[2:])
        return F.pixel_shuffle(pixels, 8)


class Labels(Net):
    """Labels in eval mode, logits in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.training else logits.argmax(1)


MODELS: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "plain": (lambda: Net(Encoder()), "encoder[2]", (2, 32, 8, 12)),
    "with a bottom": (lambda: Net(Encoder(), nn.Conv2d(32, 32, 1)), "middle", (2, 32, 8, 12)),
    "squeeze-excite": (lambda: Net(Encoder(attention=True)), "encoder[2]", (2, 32, 8, 12)),
    "pyramid pooling": (lambda: Net(Encoder(), PyramidPooling()), "middle", (2, 32, 8, 12)),
    "attention": (lambda: Net(Encoder(), KeysAndValues()), "middle", (2, 32, 8, 12)),
    "small U in the decoder": (
        lambda: nn.Sequential(OrderedDict(net=Net(Encoder(), nn.Sequential(SmallUInTheDecoder())))),
        "net.middle",
        (2, 32, 8, 12),
    ),
    "wrapped": (lambda: Wrapped(Net(Encoder())), "net.encoder[2]", (2, 32, 8, 12)),
    "U in U": (
        lambda: nn.Sequential(conv(3, 8), UInU(3), conv(8, 2)),
        "1.inner.inner.inner",
        (2, 64, 4, 6),
    ),
    "levels of DynUNet": (LevelsOfDynUNet, "levels.inner.inner.inner", (2, 64, 4, 6)),
    "dead end": (ReadsTheFirst, "vit[0]", (2, 32, 8, 12)),
    "channels last": (SwinLike, "backbone[2]", (2, 4, 6, 32)),
    "context behind the code": (Flat, "context", (2, 32, 4, 6)),
    "narrowing": (Narrowing, "third", (2, 4, 4, 6)),
    "shared activation": (SharedRelu, "down2", (2, 16, 8, 12)),
    "encoder without a graph": (lambda: CutOff(Encoder()), "encoder[2]", (2, 32, 8, 12)),
    "values as wide as the code": (Attention, "encoder[2]", (2, 32, 8, 12)),
    "resizes its input": (ResizesItsInput, "net.encoder[2]", (2, 32, 4, 6)),
    "handed through": (HandsThrough, "pixel.encoder", (2, 32, 8, 12)),
    "two paths": (TwoPaths, "context.encoder[2]", (2, 32, 8, 12)),
    "modulated": (lambda: Modulated(pool=False), "net.middle", (2, 32, 8, 12)),
    "modulated by what was pooled": (lambda: Modulated(pool=True), "net.middle", (2, 32, 8, 12)),
    "pooled last": (PooledLast, "block", (2, 24, 16, 24)),
    "sub-pixel convolution": (SubPixel, "bottom", (2, 16, 16, 24)),
    "unpatchified": (Unpatchify, "mix", (2, 25, 24)),
    "sequential": (
        lambda: nn.Sequential(conv(3, 8, 2), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2, 2)),
        "1",
        (2, 8, 16, 24),
    ),
}


def images() -> Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_the_bottleneck_is_found_and_nothing_is_left_behind(name: str) -> None:
    build, layer, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().train()
    next(model.children()).eval()
    before, stream = traces(model), random_state()
    values = {key: value.clone() for key, value in model.state_dict().items()}
    location = find_bottleneck(model, images())
    assert str(location) == layer
    assert location.shape == shape
    assert traces(model) == before
    assert random_state() == stream
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    with LatentTap(model, location) as tap:
        model(images())
        assert tuple(tap.code.shape) == shape
        assert tap.layers == [location]
        assert not torch.equal(first(tap.replay(torch.zeros_like)), first(tap.replay(None)))


def first(output: Any) -> Tensor:
    return next(iter(output.values())) if isinstance(output, dict) else output


def test_labels_in_eval_mode_are_searched_in_train_mode() -> None:
    model = Labels(Encoder()).eval()
    assert str(find_bottleneck(model, images())) == "encoder[2]"
    assert not model.training


class TokensOfAVolume(nn.Module):
    """A token for each of 4 x 4 x 4 sites, strided unevenly; as many channels as another grid has sites."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Conv3d(1, 32, (4, 8, 8), (4, 8, 8)), nn.Linear(32, 32)
        self.up = nn.ConvTranspose3d(32, 2, (4, 8, 8), (4, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x)
        return self.up(self.mix(patches.flatten(2).mT).mT.unflatten(2, patches.shape[2:]))


def test_tokens_of_an_uneven_grid_are_told_by_the_grids_around_and_by_another_size() -> None:
    location = find_bottleneck(TokensOfAVolume(), torch.randn(2, 1, 16, 32, 32))
    assert (str(location), location.layout, location.stride) == ("mix", TOKENS, (4, 8, 8))


def test_queries_are_no_sites_though_their_number_might_be() -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.pixels = conv(3, 16, 4), nn.Conv2d(16, 8, 1)
            self.queries, self.decode = nn.Parameter(torch.randn(4, 16)), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2:] != (32, 32):
                raise ValueError("one size only")
            code = self.backbone(x)
            queries = self.queries + code.mean((2, 3))[:, None]
            return torch.einsum("bqc,bchw->bqhw", self.decode(queries), self.pixels(code))

    assert str(find_bottleneck(Queries(), torch.randn(2, 3, 32, 32))) == "backbone"


def test_channels_are_told_from_sites_by_another_size() -> None:
    """[2, 8, 8, 8] fits both ways at one size."""

    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.patch(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    location = find_bottleneck(ChannelsLast(), torch.randn(2, 3, 32, 32))
    assert (str(location), location.layout) == ("norm", CHANNELS_LAST)


def test_integer_images_are_searched_from_the_weights() -> None:
    class Embedded(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / 255)

    assert str(find_bottleneck(Embedded(Encoder()), torch.randint(0, 255, (2, 3, 32, 48)))) == "encoder[2]"


def test_prompts_beside_the_image_are_no_codes() -> None:
    class Prompted(Net):
        def __init__(self) -> None:
            super().__init__(Encoder())
            self.prompt = nn.Linear(2, 64)

        def forward(self, x: Tensor, points: Tensor) -> Tensor:
            return super().forward(x) * self.prompt(points).mean()

    assert str(find_bottleneck(Prompted(), (images(), torch.randn(2, 1, 2)))) == "encoder[2]"


def test_layouts_and_strides_come_with_the_location() -> None:
    assert find_bottleneck(SwinLike(), images())[2:] == (CHANNELS_LAST, (2, 4, 6, 32), (8, 8))
    case = CASES["TokensWithPrefix"]
    location = find_bottleneck(case.model(False), case.images())
    assert location.layout == Layout(-1, 1)
    assert location.stride == (4, 4)


def test_volumes_are_searched_too() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.Conv3d(4, 8, 3, (1, 2, 2), 1), nn.Upsample(scale_factor=2))
    location = find_bottleneck(model, torch.randn(1, 1, 8, 16, 16))
    assert str(location) == "1"
    assert location.stride == (2, 4, 4)


def test_a_model_of_one_size_is_found_without_the_second_run() -> None:
    class OneSize(Net):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2:] != (32, 48):
                raise AssertionError("one size only")
            return super().forward(x)

    assert str(find_bottleneck(OneSize(Encoder()), images())) == "encoder[2]"


def test_two_samples_are_run_and_the_code_is_that_of_the_whole_batch() -> None:
    model, batch, seen = Net(Encoder()), torch.randn(5, 3, 32, 48), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    assert find_bottleneck(model, batch).shape == (5, 32, 8, 12)
    assert find_codes(model, batch).image.shape[0] == 5
    assert max(seen) == batch[:2].numel()


def test_a_model_that_insists_on_its_batch_is_searched_too() -> None:
    class Insists(Net):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 3:
                raise ValueError("three at a time")
            return super().forward(x)

    location = find_bottleneck(Insists(Encoder()), torch.randn(3, 3, 32, 48))
    assert (str(location), location.shape[0]) == ("encoder[2]", 3)


def test_logits_say_what_must_depend_on_the_code() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.main = conv(3, 8, 8), conv(3, 16, 2)
            self.up = nn.Upsample(scale_factor=2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"side": self.up(self.side(x)), "logits": self.up(self.main(x))}

    model = TwoHeads()
    assert str(find_bottleneck(model, images())) == "side"
    assert str(find_bottleneck(model, images(), logits=lambda output: output["logits"])) == "main"


def test_frozen_models_are_searched_too() -> None:
    model = Net(Encoder()).requires_grad_(False)
    with torch.no_grad():
        assert str(find_bottleneck(model, images())) == "encoder[2]"
    with torch.inference_mode():
        assert str(find_bottleneck(model, images())) == "encoder[2]"


def test_compiled_parts_are_looked_into_without_compiling() -> None:
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    model = Net(Encoder())
    model.encoder = torch.compile(model.encoder, backend=backend)
    assert str(find_bottleneck(model, images())) == "encoder[2]"
    assert not compiled


class VectorBottleneck(nn.Module):
    """The code is [B, C]; what is coarser than the input is none."""

    def __init__(self) -> None:
        super().__init__()
        self.squash, self.spread = nn.Linear(3 * 32 * 48, 16), nn.Linear(16, 2 * 32 * 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(self.squash(x.flatten(1))).reshape(-1, 2, 32, 48)


class Functional(nn.Module):
    """No submodule returns the code."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.head = conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = F.conv2d(x, self.weight, stride=4, padding=1)
        return self.head(F.interpolate(code, x.shape[2:]))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (VectorBottleneck(), r"no code in VectorBottleneck on a coarser grid than its input \(2, 3, 32, 48\)"),
        (Functional(), r"its modules return head \(2, 2, 32, 48\). Pass layer="),
        (nn.Sequential(conv(3, 8), conv(8, 2)), r"its modules return 0 \(2, 8, 32, 48\), 1 \(2, 2, 32, 48\)"),
        (nn.ReLU(), r"its modules return nothing"),
    ],
    ids=["vector", "functional", "no stride", "no submodule"],
)
def test_models_without_a_code_are_refused_with_a_table(model: nn.Module, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        find_bottleneck(model, images())


def test_a_code_that_nobody_reads_is_refused() -> None:
    class Bypassed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Remembering()
            self.head = conv(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.part(x)
            return self.head(F.interpolate(self.part.kept, x.shape[2:]))

    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.kept = F.conv2d(x, self.weight, stride=2, padding=1)
            return self.kept

    with pytest.raises(ValueError, match=r"no code in Bypassed whose replacement would change the output"):
        find_bottleneck(Bypassed(), images())


# Describing -------------------------------------------------------------------------------------------------------


def test_a_description_is_the_table_of_candidates() -> None:
    model = Net(Encoder())
    description = describe(model, images())
    assert isinstance(description, Description)
    assert [row.chosen for row in description.rows].count(True) == 1
    chosen = next(row for row in description.rows if row.chosen)
    assert str(chosen.location) == "encoder[2]"
    assert chosen.type == "Encoder"
    for row in description.rows:
        assert 0 <= row.saved <= 1
        assert row.influence is None or row.influence > 0
        assert row.leak is None or 0 <= row.leak <= 1
    names = [str(row.location) for row in description.rows]
    assert len(names) == len(set(names))
    assert {"encoder[1]", "encoder[2]", "up1"} <= set(names)
    head, columns, *rows = str(description).splitlines()
    assert head == "Net: * is the layer that layer=None taps"
    assert columns.split() == ["layer", "type", "shape", "layout", "stride", "saves", "influence", "leak"]
    assert len(rows) == len(description.rows)
    assert rows[0].split()[:4] == ["*", "encoder[2]", "Encoder", "2x32x8x12"]


def test_a_description_marks_the_code_that_images_are_decoded_from() -> None:
    stages = [nn.Conv2d(4 * 2**i if i else 3, 8 * 2**i, 3, 2, 1) for i in range(4)]
    model = nn.Sequential(*stages, nn.Upsample(scale_factor=16), nn.Conv2d(64, 2, 1))
    description = describe(model, images())
    marked = {str(row.location): (row.chosen, row.fine) for row in description.rows if row.chosen or row.fine}
    assert marked == {"3": (True, False), "2": (False, True)}
    assert marked.keys() == set(map(str, find_codes(model, images())))
    head, _, *rows = str(description).splitlines()
    assert head.endswith("+ the one that find_codes names for images")
    assert [row.split()[:2] for row in rows if row[0] == "+"] == [["+", "2"]]


def test_influence_is_the_share_of_the_output_that_a_zero_code_takes_away() -> None:
    model = Net(Encoder()).eval()
    row = next(row for row in describe(model, images()).rows if row.chosen)
    with torch.no_grad():
        logits = model(images()[:1])
        model.encoder.register_forward_hook(lambda module, args, output: [*output[:2], output[2] * 0])
        without = model(images()[:1])
    influence = float((without - logits).norm() / logits.norm())
    assert row.influence == pytest.approx(influence, rel=1e-5)
    assert row.leak == pytest.approx(max(0.0, 1 - influence), rel=1e-4)


def test_a_dead_signal_is_said_to_be_dead() -> None:
    model = Net(Encoder())
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.zero_()
    description = describe(model, images())
    row = next(row for row in description.rows if row.chosen)
    assert row.influence is None
    assert row.leak is None
    assert "n/a, signal dead: train first" in str(description)


def test_a_skip_that_nobody_reads_is_all_leak() -> None:
    class Unread(Net):
        def forward(self, x: Tensor) -> Tensor:
            code = self.encoder(x)[-1]
            return self.head(F.relu(self.up2(F.relu(self.up1(code)))))

    rows = {str(row.location): row for row in describe(Unread(Encoder()), images()).rows}
    assert rows["encoder[2]"].influence
    assert (rows["encoder[1]"].influence, rows["encoder[1]"].leak) == (0, 1)


def test_a_model_that_cannot_be_replayed_is_described_too() -> None:
    class Counts(Net):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * self.calls

    description = describe(Counts(Encoder()), images())
    row = description.rows[0]
    assert (str(row.location), row.saved, row.influence, row.leak) == ("encoder[2]", None, None, None)
    assert "cannot be replayed: LatentTap cannot replay Counts" in str(description)


def test_descriptions_of_large_models_stay_short() -> None:
    model = nn.Sequential(conv(3, 8, 2), *(conv(8, 8) for _ in range(30)), conv(8, 16, 2), nn.Upsample(scale_factor=4))
    strides = [row.location.stride for row in describe(nn.Sequential(model), images()).rows]
    assert strides == [(4, 4), (2, 2), (2, 2)]


def test_described_logits_count_alone() -> None:
    class WithNoise(Net):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x), "image": 1e3 * x}

    torch.manual_seed(0)
    model = WithNoise(Encoder())
    everything = next(row for row in describe(model, images()).rows if row.chosen)
    logits = next(row for row in describe(model, images(), logits=lambda out: out["logits"]).rows if row.chosen)
    assert logits.influence > 10 * (everything.influence or 0)
