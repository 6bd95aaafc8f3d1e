"""Codes that are read, and not replayed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latentaug.layout import CHANNELS_FIRST
from latentaug.saliency import latent_saliency
from latentaug.tap.latent_tap import LatentTap
from latentaug.tap.reader import CodeReader
from tests.models.hostile.in_place import ActivationBehindTheTap
from tests.models.parts import conv
from tests.models.unet import UNet
from tests.support.compare import same
from tests.support.traces import traces


def test_a_reader_has_the_code_of_a_tap(model: UNet, images: Tensor) -> None:
    before = traces(model)
    with LatentTap(model, ["encoder[1]", "encoder[0]"]) as tap:
        expected = latent_saliency(model(images).sum(), tap.codes)
        layers = tap.layers
    with CodeReader(model, ["encoder[1]", "encoder[0]"]) as reader:
        assert same(latent_saliency(model(images).sum(), reader.codes), expected)
    assert reader.layers == layers
    assert reader.layout == CHANNELS_FIRST
    assert traces(model) == before


def test_it_costs_one_pass_that_finds_the_layer(model: UNet, images: Tensor) -> None:
    passes = list[int]()
    model.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    batch = images.repeat(3, 1, 1, 1)
    for _ in range(2):
        with CodeReader(model, "encoder[1]"):
            model(batch)
    assert passes == [2, 6, 6]


def test_what_follows_does_not_change_the_code() -> None:
    model, images = ActivationBehindTheTap().double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with CodeReader(model, "code") as reader:
        model(images)
        assert float(reader.code.detach().min()) < 0


def test_the_last_call_is_read_or_the_one_asked_for() -> None:
    model = nn.Sequential(shared := conv(2, 2), nn.ReLU(), shared)
    images = torch.randn(2, 2, 8, 8)
    for call, expected in ((-1, model(images)), (0, shared(images))):
        with CodeReader(model, "0", call=call) as reader:
            model(images)
            assert torch.equal(reader.code, expected)


def test_beside_a_tap_it_takes_part_in_the_same_pass(model: UNet, images: Tensor) -> None:
    with LatentTap(model, "encoder[1]") as tap, CodeReader(model, "encoder[0]") as reader:
        logits = model(images)
        assert torch.equal(tap.replay(tap.code), logits)
        assert reader.code.grad_fn is not None
        seen = reader.code
        tap.replay(tap.code * 0.5, full=True)
        assert reader.code is seen


def test_it_refuses_to_replay(model: UNet, images: Tensor) -> None:
    with CodeReader(model, "encoder[1]") as reader:
        model(images)
        for refused in (reader.replay, reader.draw):
            with pytest.raises(RuntimeError, match=r"A CodeReader has no replays. Use LatentTap"):
                refused(reader.code)
