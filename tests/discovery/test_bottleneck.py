"""The code that is chosen, of all that there could be."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug.discovery.bottleneck import find_bottleneck
from latentaug.discovery.codes import find_codes
from latentaug.tap.latent_tap import LatentTap
from tests.models.handwritten.strange import DownToOneSite, PatchesForward
from tests.models.parts import conv
from tests.models.searched.choices import CutOff, Narrowing, PooledLast, ReadsTheFirst, SharedRelu, SubPixel
from tests.models.searched.detours import Attention, Flat, KeysAndValues, Modulated, PyramidPooling, SmallUInTheDecoder
from tests.models.searched.layouts import SwinLike, Unpatchify
from tests.models.searched.nested import HandsThrough, LevelsOfDynUNet, ResizesItsInput, TwoPaths, UInU, Wrapped
from tests.models.searched.parts import Encoder, Net, images
from tests.support.random_streams import random_state
from tests.support.traces import traces

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
        (
            VectorBottleneck(),
            r"no code in VectorBottleneck on a coarser grid than the input, `example`, of shape \(2, 3, 32, 48\)",
        ),
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


def test_two_samples_are_run_and_the_code_is_that_of_the_whole_batch() -> None:
    model, batch, seen = Net(Encoder()), torch.randn(5, 3, 32, 48), list[int]()
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


def test_functions_in_the_place_of_forward_see_what_stands_in_for_a_code() -> None:
    model = PatchesForward().eval()
    assert str(find_bottleneck(model, images())) == "encoder.stages.2.1"
    with LatentTap(model) as tap:
        logits = model(images())
        assert not torch.equal(tap.replay(torch.zeros_like), logits)


def test_what_is_named_logits_must_depend_on_the_code() -> None:
    class ReturnsItsEncoder(Net):
        def forward(self, x: Tensor) -> Any:
            *skips, code = self.encoder(x)
            deeper = self.deeper(code)
            for up in (self.up1, self.up2):
                code = F.relu(up(code)) + skips.pop()
            return {"logits": self.head(code), "deeper": deeper}

    model = ReturnsItsEncoder(Encoder())
    model.deeper = nn.Sequential(conv(32, 64, 2), nn.ReLU(), conv(64, 64))
    assert str(find_bottleneck(model, images())) == "encoder[2]"


def test_a_refusal_names_the_codes_as_fine_as_the_input() -> None:
    model = nn.Sequential(conv(3, 8), nn.Sequential(conv(8, 16), nn.ReLU()), conv(16, 2))
    with pytest.raises(ValueError, match=r"all of the output comes of '1' \(2, 16, 32, 48\), '1.0' .*, as fine as the"):
        find_bottleneck(model, images())


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (64, 64)], ids=str)
def test_a_single_site_is_a_code_where_that_is_what_is_left_of_a_small_image(size: tuple[int, int]) -> None:
    location = find_bottleneck(DownToOneSite(), torch.randn(2, 3, *size))
    assert (str(location), location.stride) == ("downs.4", (32, 32))
