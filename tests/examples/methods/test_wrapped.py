"""A network of one's own, wrapped as it is by default, with one thing changed."""

from __future__ import annotations

import pytest
import torch

from cardiac.run.presets import Preset
from latentaug import HardExamples
from study.methods.method import NOISE
from study.methods.network import Network
from study.methods.wrapped import WRAPPED

SMALL = Preset(image_size=64, depth=2, width=2)
BATCH = torch.rand(4, 1, 64, 64), torch.randint(4, (4, 64, 64))


@pytest.mark.parametrize("name", WRAPPED)
def test_a_network_has_the_heads_that_it_needs_and_the_noise_of_all_methods(name: str) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    method = WRAPPED[name]
    model = Network("smp:Unet:resnet18").build(SMALL, method.arguments)
    assert (model.reconstruction is not None, model.shape_prior) == (method.reconstructs, None)
    assert model.maker.noise == NOISE
    assert model.maker.every == (1 if name in ("hard-codes", "rsc", "mixed", "mixed-quarter") else 3)
    output = method.backward(model.train(), *BATCH, generator=torch.Generator().manual_seed(0))
    learned = {
        "mixed": {"reconstruction"},
        "mixed-quarter": {"reconstruction"},
        "maxstyle": {"reconstruction", "hard_image_segmentation", "hard_image_reconstruction"},
    }
    assert {*output.losses} == {"segmentation", *learned.get(name, {"hard_code_segmentation"})}
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name, method in WRAPPED.items() if not method.reconstructs])
def test_a_replay_is_never_of_the_codes_as_they_were(name: str) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    model = Network("smp:Unet:resnet18").build(SMALL, {**WRAPPED[name].arguments, "hard": HardExamples(every=1)})
    model.train()
    for seed in range(10):
        output = model(*BATCH, generator=torch.Generator().manual_seed(seed))
        assert not torch.equal(output.losses["segmentation"], output.losses["hard_code_segmentation"])
