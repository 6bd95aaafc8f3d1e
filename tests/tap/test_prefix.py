"""A pass that ends at a code: the code of the whole pass, and nothing after it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latentaug import LatentTap, find_bottleneck
from latentaug.tap.prefix import code_of
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
