"""The presets."""

from __future__ import annotations

import pytest

from cardiac.run.presets import PRESETS, Preset


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_keep_the_papers_grid_of_12_by_12_on_a_whole_image_and_so_10_by_10_on_a_crop_of_160(
    preset: Preset,
) -> None:
    assert preset.side == {None: 12, 160: 10}[preset.crop] * 2**preset.depth
