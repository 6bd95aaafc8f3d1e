"""The residual blocks of heads and networks."""

from __future__ import annotations

import math

import pytest
import torch

from latentaug.nets.blocks import Decoder, Encoder


@pytest.mark.parametrize(
    ("depth", "encoder_widths", "decoder_widths"),
    [
        (1, [4, 32], [4]),
        (2, [4, 8, 32], [8, 4]),
        (3, [4, 8, 16, 32], [16, 8, 4]),
        (4, [4, 8, 16, 32, 32], [16, 8, 4, 4]),
        (5, [4, 8, 16, 32, 32, 32], [16, 8, 4, 4, 4]),
    ],
)
def test_channels_double_to_eight_widths_and_come_down_again(
    depth: int, encoder_widths: list[int], decoder_widths: list[int]
) -> None:
    encoder = Encoder(1, width=4, depth=depth, spatial_dims=1)
    decoder = Decoder(32, 1, [(2,)] * depth, width=4, spatial_dims=1)
    assert [encoder.stem[0].out_channels, *(b.shortcut.out_channels for b in encoder.blocks)] == encoder_widths
    assert [block.shortcut.out_channels for block in decoder.blocks] == decoder_widths
    assert decoder(encoder(torch.rand(2, 1, 64))).shape == (2, 1, 64)


def test_depth_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1; got 0"):
        Encoder(1, width=4, depth=0, spatial_dims=2)


def test_initial_weights_are_the_papers() -> None:
    encoder = Encoder(1, width=16, depth=4, spatial_dims=2)
    conv, norm = encoder.blocks[3].body[0], encoder.blocks[3].body[1]
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not norm.bias.any()


def test_in_place_activations_change_no_input() -> None:
    encoder = Encoder(1, width=2, depth=2, spatial_dims=2)
    image = torch.randn(2, 1, 8, 8)
    before = image.clone()
    decoder = Decoder(16, 2, [(2, 2)] * 2, width=2, spatial_dims=2)
    code = encoder(image)
    kept = code.clone()
    decoder(code).sum().backward()
    assert torch.equal(image, before)
    assert torch.equal(code, kept)
