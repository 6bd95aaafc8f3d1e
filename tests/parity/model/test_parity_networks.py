"""FTN and STN with the authors' weights return the authors' numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latentaug.nets.functional import one_hot
from tests.parity.model.reference import Reference

EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def networks(reference: Reference) -> nn.ModuleDict:
    return reference.networks()


def standard_pass(networks: nn.ModuleDict, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    model, shape_prior = networks["model"], networks["shape_prior"]
    image_code = model.encoder(images)
    shape_code = model.decoupler(image_code)
    logits = model.segmentation_decoder(shape_code)
    hot = one_hot(labels, logits.shape[1], dtype=images.dtype)
    return {
        "z_i": image_code,
        "z_s": shape_code,
        "seg_logits": logits,
        "recon_image": model.image_decoder(image_code, images.shape[2:]),
        "gt_recon_logits": shape_prior(hot),
        "pred_recon_logits": shape_prior.refine(logits),
    }


def test_standard_pass(reference: Reference, networks: nn.ModuleDict) -> None:
    outputs = standard_pass(networks, reference.noisy_images, reference.labels)
    for name, output in outputs.items():
        torch.testing.assert_close(output, reference[f"std__{name}"], **EXACT)


def test_calling_the_network_gives_the_logits(reference: Reference, networks: nn.ModuleDict) -> None:
    torch.testing.assert_close(networks["model"](reference.noisy_images), reference["std__seg_logits"], **EXACT)


def test_running_statistics_of_a_standard_pass(reference: Reference, networks: nn.ModuleDict) -> None:
    standard_pass(networks, reference.noisy_images, reference.labels)
    expected = reference.buffers("after_std")
    buffers = dict(networks.named_buffers())
    assert buffers.keys() == expected.keys()
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, expected[name], **EXACT)


def test_running_statistics_that_the_authors_move_by_mistake(reference: Reference, networks: nn.ModuleDict) -> None:
    """Their saliency pass runs both decoders in train mode again, which moves the running statistics a second time."""
    outputs = standard_pass(networks, reference.noisy_images, reference.labels)
    model = networks["model"]
    model.segmentation_decoder(outputs["z_s"])
    model.image_decoder(outputs["z_i"], reference.images.shape[2:])
    expected = reference.buffers("after_gen")
    for name, buffer in networks.named_buffers():
        torch.testing.assert_close(buffer, expected[name], **EXACT)


def test_predictions(reference: Reference, networks: nn.ModuleDict) -> None:
    networks.load_state_dict(reference.buffers("for_predict"), strict=False)
    networks.eval()
    logits = networks["model"](reference.images)
    torch.testing.assert_close(logits, reference["predict__n_iter1_logits"], **EXACT)
    for refinements in (2, 3):
        logits = networks["shape_prior"].refine(logits)
        # The authors cast this output to float32 whatever the precision.
        expected = reference[f"predict__n_iter{refinements}_logits"].double()
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)
