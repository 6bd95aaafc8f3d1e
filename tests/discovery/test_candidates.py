"""What could be a code: layouts told by grids around and by another size, results that have to depend on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from latentaug.discovery.bottleneck import find_bottleneck, looked
from latentaug.discovery.candidates import candidates, read_past
from latentaug.layout import CHANNELS_LAST, TOKENS, Layout
from tests.models.hostile.table import CASES
from tests.models.parts import conv
from tests.models.searched.choices import Labels
from tests.models.searched.layouts import SwinLike, TokensOfAVolume
from tests.models.searched.parts import Encoder, Net, images


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


def test_tokens_of_an_uneven_grid_are_told_by_the_grids_around_and_by_another_size() -> None:
    location = find_bottleneck(TokensOfAVolume(), torch.randn(2, 1, 16, 32, 32))
    assert (str(location), location.layout, location.stride) == ("mix", TOKENS, (4, 8, 8))


def test_a_model_of_one_size_is_found_without_the_second_run() -> None:
    class OneSize(Net):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2:] != (32, 48):
                raise AssertionError("one size only")
            return super().forward(x)

    assert str(find_bottleneck(OneSize(Encoder()), images())) == "encoder[2]"


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


def test_prompts_beside_the_image_are_no_codes() -> None:
    class Prompted(Net):
        def __init__(self) -> None:
            super().__init__(Encoder())
            self.prompt = nn.Linear(2, 64)

        def forward(self, x: Tensor, points: Tensor) -> Tensor:
            return super().forward(x) * self.prompt(points).mean()

    assert str(find_bottleneck(Prompted(), (images(), torch.randn(2, 1, 2)))) == "encoder[2]"


def test_integer_images_are_searched_from_the_weights() -> None:
    class Embedded(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / 255)

    assert str(find_bottleneck(Embedded(Encoder()), torch.randint(0, 255, (2, 3, 32, 48)))) == "encoder[2]"


def test_labels_in_eval_mode_are_searched_in_train_mode() -> None:
    model = Labels(Encoder()).eval()
    assert str(find_bottleneck(model, images())) == "encoder[2]"
    assert not model.training


def test_logits_say_what_must_depend_on_the_code() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.main = conv(3, 8, 8), conv(3, 16, 2)
            self.up = nn.Upsample(scale_factor=2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"side": self.up(self.side(x)), "masks": self.up(self.main(x))}

    model = TwoHeads()
    assert str(find_bottleneck(model, images())) == "side"
    assert str(find_bottleneck(model, images(), logits=lambda output: output["masks"])) == "main"


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


def test_codes_as_fine_as_the_image_are_listed_if_told() -> None:
    model = nn.Sequential(conv(1, 4), conv(4, 8, 2), nn.Upsample(scale_factor=2))
    look, again = looked(model, (torch.randn(2, 1, 16, 24),), {}, None)
    coarser, every = (candidates(model, look, again, guess=True, coarser=coarser) for coarser in (True, False))
    assert [str(c.location) for c in coarser] == ["1"]
    assert [(str(c.location), c.stride) for c in every] == [("0", (1, 1)), ("1", (2, 2)), ("2", (1, 1))]


def test_what_a_module_changes_in_place_may_be_read_past_what_it_returns() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.ReLU(inplace=True) for _ in range(3))
            self.a, self.b, self.c = conv(1, 4), conv(4, 4, 2), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            self.first(a)  # what it returns is ignored
            b = self.b(a)
            c = self.c(self.second(b)) + b  # and here it is one of two readers that takes it
            return self.third(c)

    model = InPlace()
    look, _ = looked(model, (torch.randn(2, 1, 16, 24),), {}, None)
    assert read_past(model, look, {"first", "second", "third"}) == {"first", "second"}
    assert read_past(model, look, set()) == set()
