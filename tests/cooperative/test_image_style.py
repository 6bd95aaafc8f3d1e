"""Hard images by the style of the image decoder's levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug import (
    FTN,
    VAT,
    CooperativeModel,
    HardExamples,
    ManifoldMixup,
    MaxStyle,
    MixStyle,
    Schedule,
    cooperative_backward,
)
from latentaug.cooperative.image_style import style_layers, styled
from latentaug.nets.heads import ReconstructionHead
from latentaug.tracing.isolation import frozen_norm_statistics
from tests.models.handwritten.unets import FunctionalUNet

LEVELS = ("decoder.blocks.0", "decoder.blocks.1", "")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(channels: int = 1) -> tuple[Tensor, Tensor]:
    return torch.rand(4, channels, 32, 32, generator=seeded()), torch.randint(3, (4, 32, 32), generator=seeded())


def ftn(style: Any = None, **options: Any) -> CooperativeModel:
    torch.manual_seed(0)
    images, _ = batch()
    hard = HardExamples(style=style, noise=0.0, **options)
    return CooperativeModel(FTN(num_classes=3, width=4, depth=3), num_classes=3, example=images, hard=hard)


def test_the_last_levels_and_the_image_are_changed_unless_others_are_named() -> None:
    head = ReconstructionHead(16, 1, (16, 16), width=4)
    assert style_layers(head, None) == ("decoder.blocks.2", "decoder.blocks.3", "")
    assert style_layers(ReconstructionHead(16, 1, (2, 2), width=4), None) == ("decoder.blocks.0", "")
    assert style_layers(head, ["decoder.blocks.1"]) == ("decoder.blocks.1",)
    with pytest.raises(ValueError, match=r"style_layers needs submodules of ReconstructionHead; got 'blocks'"):
        style_layers(head, ["blocks"])
    with pytest.raises(ValueError, match=r"needs style_layers, names of submodules of the image decoder, for a I"):
        style_layers(nn.Identity(), None)


def test_levels_are_changed_as_hooks_would_change_them() -> None:
    """Random styles, made again by hooks of the test's own: the formula of each level, from the start to the image."""
    torch.manual_seed(0)
    head = ReconstructionHead(16, 1, (4, 4), width=4).eval()
    code = torch.rand(4, 16, 8, 8)
    style = MaxStyle(p=1, steps=0)
    images = styled(head, code, (32, 32), style, LEVELS, lambda image: image.mean(), seeded())
    generator = seeded()

    # What is sampled at each level is sampled on the levels as they are without any change.
    plain: dict[str, Tensor] = {}
    modules = dict(head.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _, __, out, name=name: plain.update({name: out})) for name in LEVELS
    ]
    head(code, (32, 32))
    for handle in handles:
        handle.remove()
    changes = {name: style(plain[name], generator=generator) for name in LEVELS}
    handles = [
        modules[name].register_forward_hook(lambda _, __, out, name=name: changes[name].apply(out)) for name in LEVELS
    ]
    with torch.no_grad():
        expected = head(code, (32, 32))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(images, expected)
    assert not torch.allclose(images, plain[""])


@pytest.mark.parametrize("steps", [1, 3])
def test_hard_images_are_what_the_network_is_worse_at(steps: int) -> None:
    images, labels = batch()
    losses = []
    for style in (MaxStyle(p=1, steps=0), MaxStyle(p=1, steps=steps)):
        coop = ftn(style)
        output = coop(images, labels, generator=seeded())
        with torch.no_grad(), frozen_norm_statistics(coop):
            losses.append(F.cross_entropy(coop.model(output.hard_images), labels).item())
    assert losses[1] > losses[0]


def test_the_code_is_decoded_as_it_is_in_another_style() -> None:
    images, labels = batch()
    coop = ftn(MixStyle(p=0.0))
    decoded: list[Tensor] = []
    coop.reconstruction.register_forward_hook(lambda _, __, out: decoded.append(out.detach()))
    output = coop(images, labels, generator=seeded())
    assert torch.equal(output.hard_images, decoded[0])


@pytest.mark.parametrize("style", [MaxStyle(p=1), MixStyle(p=1)], ids=repr)
def test_weights_gradients_and_statistics_are_untouched(style: Any) -> None:
    images, labels = batch()
    torch.manual_seed(0)
    statistics = []
    for one in (None, style):
        coop = ftn(one)
        coop(images, labels, generator=seeded())
        assert all(parameter.grad is None for parameter in coop.parameters())
        statistics.append({name: value for name, value in coop.state_dict().items() if "running" in name})
    assert statistics[0].keys() == statistics[1].keys()
    assert all(torch.equal(value, statistics[1][name]) for name, value in statistics[0].items())


def test_both_forms_of_a_step_have_the_same_gradients() -> None:
    images, labels = batch()
    whole, frugal = ftn(MaxStyle(p=1, steps=2)).double(), ftn(MaxStyle(p=1, steps=2)).double()
    whole(images.double(), labels, generator=seeded()).loss.backward()
    cooperative_backward(frugal, images.double(), labels, generator=seeded())
    for (name, one), other in zip(whole.named_parameters(), frugal.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_network_with_skip_connections(fraction: float) -> None:
    images, _ = batch(3)
    labels = torch.randint(2, (4, 32, 32), generator=seeded())
    torch.manual_seed(0)
    coop = CooperativeModel(
        FunctionalUNet(),
        num_classes=2,
        example=images,
        reconstruction=True,
        hard=HardExamples(style=MaxStyle(p=1), fraction=fraction),
    )
    output = cooperative_backward(coop, images, labels, generator=seeded())
    assert output.hard_images is not None
    assert output.hard_images.shape == (int(4 * fraction), 3, 32, 32)
    assert not output.hard_images.requires_grad
    assert 0 <= output.hard_images.min() < output.hard_images.max() <= 1
    explained = coop.explain(images, labels, generator=seeded())
    assert explained.hard_images.shape == images.shape


def test_a_schedule_of_the_style_is_part_of_the_model() -> None:
    coop = ftn(MaxStyle(p=Schedule(0.0, 1.0, iterations=10)))
    assert "style.p._extra_state" in coop.state_dict()
    coop.hard = HardExamples()
    assert not any("style" in name for name in coop.state_dict())


def test_a_decoder_of_one_s_own_needs_layers() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(32, 4, 8, 8)
            self.out = nn.Conv2d(4, 3, 1)

        def forward(self, code: Tensor, size: Any) -> Tensor:
            return self.out(self.up(code)).sigmoid()

    images, _ = batch(3)
    labels = torch.randint(2, (4, 32, 32), generator=seeded())
    network = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.ReLU(), nn.ConvTranspose2d(32, 2, 8, 8))
    options: dict[str, Any] = {"num_classes": 2, "example": images, "codes": "1", "reconstruction": Decoder()}
    with pytest.raises(ValueError, match=r"needs style_layers, names of submodules of the image decoder, for a D"):
        CooperativeModel(network, **options, hard=HardExamples(style=MaxStyle()))
    coop = CooperativeModel(network, **options, hard=HardExamples(style=MaxStyle(p=1), style_layers=["up", "out"]))
    assert coop(images, labels).hard_images.shape == images.shape


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ("MaxStyle", r"style must be a transform, such as MaxStyle\(\); got 'MaxStyle'"),
        (ManifoldMixup(), r"style must change levels of the image decoder; ManifoldMixup mixes labels too"),
        (VAT(), r"style must ask for no more than a saliency and a loss; got one that asks for divergence_at"),
    ],
)
def test_other_styles_are_refused(style: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        HardExamples(style=style)


def test_one_name_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match=r"style_layers must be a list of names; got 'up'"):
        HardExamples(style=MaxStyle(), style_layers="up")
