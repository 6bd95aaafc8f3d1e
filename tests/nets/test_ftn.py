"""The paper's network: sizes, widths, codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentaug.nets.ftn import FTN


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (64, 64)),
        ({"depth": 3}, (40, 40)),
        ({"num_classes": 1, "in_channels": 3}, (65, 50)),  # not divisible by the stride
        ({"spatial_dims": 1}, (100,)),
        ({"spatial_dims": 3, "depth": 2}, (12, 9, 8)),
    ],
)
def test_logits_codes_and_images_have_their_sizes(options: dict[str, Any], size: tuple[int, ...]) -> None:
    network = FTN(width=2, **options)
    images = torch.rand(2, options.get("in_channels", 1), *size)
    code = network.encoder(images)
    assert network(images).shape == (2, options.get("num_classes", 4), *size)
    stride = 2 ** options.get("depth", 4)
    assert code.shape == (2, 16, *(-(-length // stride) for length in size))
    assert network.image_decoder(code, size).shape == images.shape


def test_the_papers_widths() -> None:
    network = FTN()
    downs = [block.shortcut.out_channels for block in network.encoder.blocks]
    assert downs == [32, 64, 128, 128]
    for decoder in (network.segmentation_decoder, network.image_decoder.decoder):
        assert [block.shortcut.out_channels for block in decoder.blocks] == [64, 32, 16, 16]
    assert network.encoder(torch.rand(1, 1, 192, 192)).shape == (1, 128, 12, 12)


def test_declares_its_codes_and_its_image_decoder() -> None:
    network = FTN(width=2)
    images = torch.rand(1, 1, 32, 32)
    image_code = network.get_submodule(network.image_code)(images)
    shape_code = network.get_submodule(network.shape_code)(image_code)
    assert image_code.shape == shape_code.shape == (1, 16, 2, 2)
    assert network.image_decoder.image_range == (0, 1)
    assert FTN(width=2, image_range=None).image_decoder.image_range is None


def test_the_segmentation_reads_the_shape_code_only() -> None:
    network = FTN(width=2, depth=2).eval()
    images = torch.rand(1, 1, 16, 16)
    expected = network.segmentation_decoder(network.decoupler(network.encoder(images)))
    torch.testing.assert_close(network(images), expected)
    network(images).sum().backward()
    assert all(parameter.grad is None for parameter in network.image_decoder.parameters())
