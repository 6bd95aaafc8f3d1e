"""A pass that ends at a code: the code of the whole pass, and nothing after it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latentaug import LatentTap, find_bottleneck
from latentaug.tap.prefix import calls_in, code_of
from tests.models.segmenters import Levels, SkipNet


@pytest.mark.parametrize("build", [SkipNet, Levels])
def test_the_code_is_that_of_the_whole_pass_and_what_follows_is_not_run(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, images = build().eval(), torch.rand(2, 1, 16, 16)
    location = find_bottleneck(model, images)
    with LatentTap(model, location) as tap:
        model(images)
        expected = tap.code.detach()
    last: list[Tensor] = []
    [*model.modules()][-1].register_forward_hook(lambda module, inputs, output: last.append(output))
    assert torch.equal(code_of(model, location, images), expected)
    assert not last
    assert "forward" not in vars(model.get_submodule(location.name))
    model(images)
    assert len(last) == 1


class Shared(nn.Module):
    """Comes to one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.block, self.up = nn.Conv2d(1, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 2, 4, 4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.up(self.block(self.norm(self.block(self.down(images)))))


def test_a_layer_that_is_called_again_has_a_code_for_each_call() -> None:
    torch.manual_seed(0)
    model, images = Shared(), torch.rand(2, 1, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert calls_in(model, "block", images) == 2
    assert calls_in(model, "down", images) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for call in (0, 1):
        with LatentTap(model, "block", call=call) as tap:
            model(images)
            assert torch.equal(code_of(model, tap.layers[0], images, call=call), tap.code)
            location = tap.layers[0]
    with pytest.raises(RuntimeError, match="did not come to its layer 'block' more than 2 times"):
        code_of(model, location, images, call=2)


def test_taps_that_are_open_take_it_for_none_of_theirs() -> None:
    torch.manual_seed(0)
    model, images = SkipNet().train(), torch.rand(2, 1, 16, 16)
    model.dropout.p = 0.0
    location = find_bottleneck(model, images)
    expected = code_of(model, location, images)
    with LatentTap(model, location) as tap:
        model(images)
        kept = tap.code
        assert torch.equal(code_of(model, location, images), expected)
        assert tap.code is kept


def test_a_layer_that_is_not_called_is_named() -> None:
    class Lazy(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return self[0](images)

    images = torch.rand(2, 1, 16, 16)
    location = find_bottleneck(
        nn.Sequential(nn.Conv2d(1, 2, 2, 2), nn.Conv2d(2, 2, 2, 2), nn.Upsample(scale_factor=4)), images
    )
    with pytest.raises(RuntimeError, match="Lazy was called, and did not come to its layer '1'"):
        code_of(Lazy(nn.Conv2d(1, 2, 2, 2), nn.Conv2d(2, 2, 2, 2)), location, images)
