"""What varies the paper's method."""

from __future__ import annotations

import pytest

from cardiac.run.presets import Preset
from study.methods.ablations import all_but_image_decoder
from study.methods.network import HEADS, Network

SMALL = Preset(image_size=64, depth=2, width=2)


@pytest.mark.parametrize("name", ["FTN", "smp:Unet:resnet18"])
def test_norm_frozen_covers_all_but_what_decodes_images(name: str) -> None:
    model = Network(name).build(SMALL, HEADS)
    names = all_but_image_decoder(model)
    covered = {id(p) for part in names for p in model.get_submodule(part).parameters()}
    images = {id(p) for p in model.reconstruction.parameters()}
    assert covered == {id(p) for p in model.parameters()} - images
