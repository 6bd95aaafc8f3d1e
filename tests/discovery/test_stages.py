"""Where stages end, whatever the modules are called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug.discovery.bottleneck import looked
from latentaug.discovery.stages import Stages, stages_of
from tests.models.handwritten.attention import Segmenter
from tests.models.handwritten.streams import TwoStreams
from tests.models.handwritten.unets import FunctionalUNet, RecursiveUNet, SharedUNet
from tests.models.hostile.in_place import StatementActivation
from tests.models.parts import conv

IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A convolution beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.a, self.b = conv(channels_in, channels_out, stride), nn.Conv2d(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x)) + self.b(x)


class Dilated(nn.Module):
    """A residual encoder behind a stem, whose last two stages are on one grid; it returns all that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = conv(3, 8, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.one = nn.Sequential(Residual(8, 8), Residual(8, 8))
        self.two = nn.Sequential(Residual(8, 16, 2), Residual(16, 16))
        self.three = nn.Sequential(Residual(16, 32), Residual(32, 32))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.relu(self.conv(x))]
        features.append(self.one(self.pool(features[-1])))
        features.append(self.two(features[-1]))
        features.append(self.three(features[-1]))
        return features


class OnDilated(nn.Module):
    """A head of a hidden layer, in one module, on what the encoder returns last."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Dilated()
        self.head = nn.Sequential(nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(self.encoder(x)[-1]), x.shape[2:])


class Pooling(nn.Module):
    """Returns what it makes, for a skip connection, and what it pools of that."""

    def __init__(self, channels_in: int, channels_out: int, *, module: bool) -> None:
        super().__init__()
        self.conv, self.pool = conv(channels_in, channels_out), nn.MaxPool2d(2) if module else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        return x, F.max_pool2d(x, 2) if self.pool is None else self.pool(x)


class OnPooling(nn.Module):
    """A U-Net whose encoder hands on a pair at each level."""

    def __init__(self, *, module: bool) -> None:
        super().__init__()
        self.down1, self.down2 = Pooling(3, 8, module=module), Pooling(8, 16, module=module)
        self.bottom, self.up2, self.up1 = conv(16, 32), conv(48, 8), conv(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip1, x = self.down1(x)
        skip2, x = self.down2(x)
        x = F.interpolate(self.bottom(x), scale_factor=2)
        x = F.interpolate(self.up2(torch.cat([x, skip2], 1)), scale_factor=2)
        up: Tensor = self.up1(torch.cat([x, skip1], 1))
        return up


class ReadBetween(nn.Module):
    """A skip connection reads what the first of two layers of a level makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bottom, self.up = conv(3, 8), conv(8, 8), conv(8, 16, 2), conv(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        x = F.interpolate(self.bottom(self.second(skip)), scale_factor=2)
        up: Tensor = self.up(torch.cat([x, skip], 1))
        return up


def stages(model: nn.Module, images: Tensor = IMAGES) -> Stages:
    return stages_of(model, *looked(model, (images,), {}, None))


def names(found: Stages) -> tuple[str, list[str], list[str]]:
    stem = str(found.stem.location) if found.stem else ""
    return stem, [str(c.location) for c in found.encoder], [str(c.location) for c in found.decoder]


MODELS: dict[str, tuple[Callable[[], nn.Module], str, list[str], list[str]]] = {
    "U-Net": (FunctionalUNet, "", ["enc1", "enc2", "bottom"], ["dec2", "dec1"]),
    "residual, dilated": (OnDilated, "encoder.relu", ["encoder.one", "encoder.two", "encoder.three"], ["head.1"]),
    "pairs": (lambda: OnPooling(module=True), "", ["down1.conv", "down2.conv", "bottom"], ["up2"]),
    "pairs, functional": (lambda: OnPooling(module=False), "", ["down1.conv", "down2.conv", "bottom"], ["up2"]),
    # What `first` makes is read beside `second`, too, so that only a change of `first` reaches all.
    "read between": (ReadBetween, "", ["first", "bottom"], []),
    # A ReLU behind each of these layers changes in place what the skip connection reads, not what the ReLU returns.
    "recursive": (
        RecursiveUNet,
        "",
        ["model.0", "model.1.model.1", "model.1.model.2.model.1", "model.1.model.2.model.2.model.2"],
        ["model.1.model.2.model.3", "model.1.model.3", "model.2"],
    ),
    "return value ignored": (StatementActivation, "", ["stem", "code"], ["up"]),
    "shared modules": (lambda: SharedUNet(False), "", ["stem", "block"], []),
    "tokens on one grid": (Segmenter, "", ["vit.patch_embed", "vit.blocks.0", "vit.blocks.1", "vit.norm"], []),
    "two streams": (lambda: TwoStreams(True), "", ["fusion"], ["decoder.blocks.0", "decoder.blocks.1"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_stages_end_in_the_modules_that_a_reader_would_name(name: str) -> None:
    build, *expected = MODELS[name]
    images = IMAGES if name != "two streams" else IMAGES[:, [0, 1, 2, 0]]
    assert names(stages(build(), images)) == tuple(expected)


def test_an_encoder_of_one_grid_is_said_to_be_cut_by_depth() -> None:
    assert stages(Segmenter()).by_depth
    assert not stages(FunctionalUNet()).by_depth
    assert not stages(SharedUNet(False)).by_depth


def test_stages_come_with_strides_also_where_they_are_as_fine_as_the_images() -> None:
    found = stages(FunctionalUNet())
    assert [c.stride for c in found.encoder] == [(1, 1), (2, 2), (4, 4)]
    assert [c.location.shape for c in found.decoder] == [(2, 16, 16, 24), (2, 8, 32, 48)]
