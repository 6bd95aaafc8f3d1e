"""What comes in at the door; wrong calls of all kinds are in `tests/faults/test_wrong_calls.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug import CooperativeModel, HardExamples, cooperative_backward
from latentaug.cooperative.arguments import Expected, check_decoder, check_images, check_step
from latentaug.nets.ftn import FTN


def test_images_like_the_example_are_let_through() -> None:
    expected, model = Expected(torch.rand(2, 3, 8, 8)), nn.Conv2d(3, 1, 1)
    expected.check(model, torch.rand(5, 3, 16, 4), torch.zeros(5, 16, 4), torch.Generator())
    expected.check(model, torch.rand(1, 3, 8, 8), None, None)
    expected.check(nn.Identity(), torch.rand(1, 3, 8, 8).double(), None, None)  # no weights, no precision


def test_other_precisions_are_for_autocast_or_weights_alike() -> None:
    expected, model = Expected(torch.rand(2, 3, 8, 8)), nn.Conv2d(3, 1, 1)
    half = torch.rand(2, 3, 8, 8).bfloat16()
    with pytest.raises(TypeError, match=r"needs images of torch.float32, as its weights are; got torch.bfloat16"):
        expected.check(model, half, None, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected.check(model, half, None, None)
    expected.check(model.bfloat16(), half, None, None)


def test_images_need_a_batch_and_a_size() -> None:
    assert check_images("images", images := torch.rand(1, 1, 4)) is images
    with pytest.raises(ValueError, match=r"needs images, a batch of images \[B, C, \*S\] of one sample at least; got"):
        check_images("images", torch.rand(4, 4))


def test_a_decoder_is_tried_and_left_as_it_was() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm = nn.ConvTranspose2d(8, 1, 4, 4), nn.BatchNorm2d(1)

        def forward(self, code: Tensor, size: tuple[int, ...]) -> Tensor:
            return self.norm(self.up(code))

    decoder, code = Decoder(), torch.rand(2, 8, 4, 4)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    check_decoder(decoder, code, torch.rand(2, 1, 16, 16), (16, 16))
    assert decoder.training
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    with pytest.raises(ValueError, match=r"images of shape \(2, 1, 12, 12\) for the example and the size"):
        check_decoder(decoder, code, torch.rand(2, 1, 12, 12), (12, 12))


@pytest.mark.parametrize(
    ("scale", "size"), [(0.5, (8, 8)), (1.0, (16, 16)), (nn.Parameter(torch.tensor(0.5)), (16, 16)), ((2, 2), (16, 16))]
)
def test_a_decoder_is_called_for_smaller_images_if_it_says_so_by_a_number(scale: Any, size: tuple[int, int]) -> None:
    sizes = []

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.scale = nn.Conv2d(8, 1, 1), scale

        def forward(self, code: Tensor, size: tuple[int, ...]) -> Tensor:
            sizes.append(size)
            return nn.functional.interpolate(self.out(code), size)

    net = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 2, 4, 4))
    images, labels = torch.rand(2, 1, 16, 16), torch.randint(2, (2, 16, 16))
    for hard in (HardExamples(), HardExamples(mix=0.5), HardExamples(every=1)):
        coop = CooperativeModel(net, num_classes=2, example=images, codes="0", reconstruction=Decoder(), hard=hard)
        cooperative_backward(coop, images, labels)
    assert {*sizes} == {size}


def test_a_cooperative_model_is_not_wrapped_again() -> None:
    images = torch.rand(2, 1, 16, 16)
    coop = CooperativeModel(FTN(width=2, depth=2), num_classes=4, example=images)
    for model in (coop, torch.compile(coop)):
        with pytest.raises(TypeError, match="model is a CooperativeModel already"):
            CooperativeModel(model, num_classes=4, example=images)


def test_steps_take_cooperative_models_and_what_wraps_them() -> None:
    coop = CooperativeModel(FTN(width=2, depth=2), num_classes=4, example=torch.rand(2, 1, 16, 16))
    check_step("step", coop, None, None)

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = coop

        def forward(self, *args: object, **kwargs: object) -> object:
            return self.module(*args, **kwargs)

    check_step("step", Wrapper(), torch.amp.GradScaler("cpu"), torch.Generator())
    with pytest.raises(TypeError, match=r"step needs `model` to be a CooperativeModel, also wrapped; got a FTN"):
        check_step("step", coop.model, None, None)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_a_network_that_ends_in_an_activation_is_told_of(num_classes: int, caplog: pytest.LogCaptureFixture) -> None:
    def net(*end: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, num_classes, 4, 4), *end)

    torch.manual_seed(0)
    images = torch.rand(2, 1, 16, 16)
    CooperativeModel(net(), num_classes=num_classes, example=images)
    assert not caplog.records
    end = nn.Sigmoid() if num_classes == 1 else nn.Softmax(1)
    CooperativeModel(net(end), num_classes=num_classes, example=images)
    (record,) = caplog.records
    assert "Sequential returns what looks like probabilities" in record.message
    caplog.clear()
    CooperativeModel(net(end), num_classes=num_classes, example=images, logits=lambda p: p.clamp_min(1e-6).log())
    assert not caplog.records
