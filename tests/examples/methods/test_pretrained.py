from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from nuclei.presets import Preset
from study.data.frame import DataError
from study.methods.network import Network
from study.methods.pretrained import load_encoder, load_trained


def unet(channels: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = smp.Unet("resnet18", encoder_weights=None, in_channels=channels, classes=2)
    return network


@pytest.mark.parametrize("form", ["encoder", "network", "checkpoint"])
def test_an_encoder_of_three_channels_gives_a_grey_image_the_same_codes(tmp_path: Path, form: str) -> None:
    coloured, grey = unet(3, 1), unet(1, 2)
    saved = coloured.encoder.state_dict() if form == "encoder" else coloured.state_dict()
    torch.save({"state_dict": saved, "epoch": 3} if form == "checkpoint" else saved, tmp_path / "weights.pt")
    load_encoder(grey, tmp_path / "weights.pt")
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        ours, theirs = grey.eval().encoder(image), coloured.eval().encoder(image.repeat(1, 3, 1, 1))
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_network_is_built_with_them_and_says_so(tmp_path: Path) -> None:
    torch.save(unet(1, 1).encoder.state_dict(), tmp_path / "weights.pt")
    network = Network("smp:Unet:resnet18", pretrained=tmp_path / "weights.pt")
    model = network.build(replace(Preset(), image_size=64), {}).model
    assert torch.equal(model.encoder.conv1.weight, unet(1, 1).encoder.conv1.weight)
    assert network.settings["pretrained"] == str(tmp_path / "weights.pt")
    assert "pretrained" not in Network("smp:Unet:resnet18").settings


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"no weights", "cannot be read"),
        ({"epoch": 3}, "holds no weights"),
        *[(one, "holds no weights") for one in ([1, 2], (1,), 3, None, "text", torch.ones(3))],
        ({"conv1.weight": torch.full((64, 1, 7, 7), float("nan"))}, "conv1.weight is complex or not finite"),
        ({"conv1.weight": torch.ones(64, 1, 7, 7).cfloat()}, "conv1.weight is complex or not finite"),
        ({"conv1.weight": torch.zeros(64, 1, 7, 7)}, "lacks bn1.weight"),
    ],
)
def test_what_is_no_encoder_is_refused(tmp_path: Path, content: object, named: str) -> None:
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(DataError, match=named):
        load_encoder(unet(), file)


def test_a_whole_network_is_loaded_alone_or_from_a_checkpoint_and_others_are_refused(tmp_path: Path) -> None:
    given, file = unet(1, 1).state_dict(), tmp_path / "weights.pt"
    for content in (given, {"model": {f"model.{name}": value for name, value in given.items()}, "position": {}}):
        torch.save(content, file)
        network = unet()
        load_trained(network, file)
        assert all(torch.equal(value, given[name]) for name, value in network.state_dict().items())
    torch.save(nn.Linear(2, 2).state_dict(), file)
    with pytest.raises(DataError, match="these are no weights of the network"):
        load_trained(unet(), file)


def test_weights_that_are_damaged_or_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    file, whole = tmp_path / "weights.pt", unet().state_dict()
    torch.save({name: value.long() for name, value in whole.items()}, file)
    for load in (load_trained, load_encoder):
        with pytest.raises(DataError, match=r"is of torch\.int64, not torch\.float32"):
            load(unet(), file)
    torch.save(whole, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read .*damaged"):
        load_trained(unet(), file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="cannot be read"):
        load_trained(unet(), file)
