"""How hard the hard segmentations of a model are."""

from __future__ import annotations

import pytest
import torch

from cardiac.run.presets import Preset
from study.methods.network import Network
from study.run.hardness import dice_of_masked, mean_dice

SMALL = Preset(image_size=64, depth=2, width=2)


def test_dice_leaves_out_structures_that_nobody_has() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[:, 2:6, 2:6] = 1
    predicted = labels.clone()
    predicted[0, 2:6, 2:6] = 0
    assert mean_dice([predicted], [(torch.zeros(2, 1, 8, 8), labels)], 4) == pytest.approx(2 * 16 / 48)


def test_masked_codes_are_segmented_reproducibly() -> None:
    torch.manual_seed(0)
    model = Network().build(SMALL, {})
    images, labels = torch.rand(3, 1, 64, 64), torch.randint(4, (3, 64, 64))
    own, hard = dice_of_masked(model, [(images, labels)])
    assert (own, hard) == dice_of_masked(model, [(images, labels)])
    assert own == pytest.approx(mean_dice([model.eval()(images).argmax(1)], [(images, labels)], 4))
    assert own != hard
    assert hard != dice_of_masked(model, [(images, labels)], seed=1)[1]
