"""The tap on networks of other libraries: found where expected, replayed as the oracle says, left as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug import CooperativeModel, HardExamples, cooperative_backward
from latentaug.augment.masks import TargetedChannelMask, TargetedSpatialMask
from latentaug.cooperative.logits import read_logits
from latentaug.discovery.bottleneck import find_bottleneck
from latentaug.layout import Layout
from latentaug.saliency import latent_saliency
from latentaug.tap.latent_tap import LatentTap
from tests.integrations.handwritten_rows import ROWS as HANDWRITTEN
from tests.integrations.monai_rows import ROWS as MONAI
from tests.integrations.nnunet_rows import ROWS as NNUNET
from tests.integrations.rows import Row, parameters, unpaired, unused
from tests.integrations.smp_rows import ROWS as SMP
from tests.integrations.table import Table, leak_of, table
from tests.integrations.torchvision_rows import ROWS as TORCHVISION
from tests.integrations.transformers_rows import ROWS as TRANSFORMERS
from tests.support.compare import close, gradients, same
from tests.support.oracle import halved, oracle
from tests.support.random_streams import random_state, seed_all
from tests.support.traces import traces
from tests.support.trees import leaves

ROWS = [*SMP, *TORCHVISION, *MONAI, *TRANSFORMERS, *NNUNET, *HANDWRITTEN]

__all__ = ["table"]  # the fixture

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),  # what the libraries themselves use
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]

# In this scope all checks of one row run one after another, those in other files too.
EACH = pytest.mark.parametrize("row", parameters(ROWS), scope="session")
EACH_UNPAIRED = pytest.mark.parametrize("row", parameters(unpaired(ROWS)), scope="session")


def test_the_matrix_is_as_wide_as_promised() -> None:
    names = [str(row) for row in ROWS]
    assert len(set(names)) == len(names) >= 90
    assert {row.library for row in ROWS if row.quick} == {row.library for row in ROWS}
    parts, trained = (
        {part for row in rows for part in str(row).split(", ")[0].split()} for rows in (ROWS, unpaired(ROWS))
    )
    assert parts == trained
    assert len(unpaired(ROWS)) >= 200


@EACH
def test_the_bottleneck_is_the_expected_one(row: Row) -> None:
    model = row.model(True)
    before, stream, expected = traces(model), random_state(), copy.deepcopy(model)
    location = find_bottleneck(model, row.images())
    assert (location.name, location.index, location.shape) == (row.layer, row.path, row.code)
    assert location.layout == row.layout
    assert traces(model) == before
    assert random_state() == stream
    assert same(model.state_dict(), expected.state_dict())


@EACH
def test_nothing_is_left_behind_and_the_documented_row_is_true(row: Row, table: Table) -> None:
    model = row.model(False)
    with torch.no_grad():
        expected = model(row.images())  # some libraries install hooks of their own now
    state, before = copy.deepcopy(model.state_dict()), traces(model)
    pickled = _pickles(model)
    with LatentTap(model) as tap:
        output = model(row.images())
        table.check(row, tap.layers[0], leak_of(tap, output))
    assert traces(model) == before
    assert same(model.state_dict(), state)
    with torch.no_grad():
        assert same(model(row.images()), expected)
        assert same(copy.deepcopy(model)(row.images()), expected)
    assert _pickles(model) == pickled


def _pickles(model: nn.Module) -> bool:
    try:
        return bool(pickle.dumps(model))
    except Exception:  # lambdas and local classes of the library's own
        return False


@EACH
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_replays_equal_the_oracle(row: Row, train: bool) -> None:
    if train not in row.modes:
        pytest.skip("the row is of the other mode")
    reference, expected, code = oracle(row, train, halved)
    expected_gradients = gradients(reference, expected)
    model = row.known(train)
    with LatentTap(model, row.spot, call=row.call) as tap:
        call_with_another_batch(model, row)
        seed_all(0)
        output = model(row.images())
        assert torch.equal(tap.code, code)
        saliency = latent_saliency(objective(output), tap.code)
        assert float(saliency.abs().max()) > 0
        check_axes(tap.code, saliency, tap.layout, row)
        for full in (False, True):
            assert same(tap.replay(None, full=full), output)
            for _ in range(1 if full else 2):  # the second finds what the first has left
                replayed = tap.replay(halved(tap.code), full=full)
                assert same(replayed, expected)
            assert close(gradients(model, replayed), expected_gradients)


def call_with_another_batch(model: nn.Module, row: Row) -> None:
    """Run a forward pass that the later replays must not remember; with a graph, which some keep for later passes."""
    buffers = copy.deepcopy(dict(model.named_buffers()))
    model(row.images(1))
    with torch.no_grad():
        for name, value in model.named_buffers():
            if not torch.equal(value, buffers[name]):
                value.copy_(buffers[name])


def objective(output: Any) -> Tensor:
    return torch.stack([t.square().mean() for t in leaves(output) if t.requires_grad]).sum()


def check_axes(code: Tensor, saliency: Tensor, layout: Layout, row: Row) -> None:
    """See that a channel mask is the same at all sites, a spatial one in all channels, and prefix tokens are kept."""
    assert (tuple(code.shape), layout) == (row.code, row.layout)
    assert saliency.shape == code.shape
    channels, prefix = code.shape[layout.channel_dim], layout.prefix_tokens
    by_channel, by_site = (
        masker(code, saliency, layout=layout).factor.expand_as(code).movedim(layout.channel_dim, 1).flatten(2)
        for masker in (TargetedChannelMask(0.5, score="magnitude"), TargetedSpatialMask(0.5, score="magnitude"))
    )
    assert (by_channel[..., prefix:] == by_channel[..., -1:]).all()
    assert (by_channel[..., -1] != 1).sum(1).tolist() == [int(channels * 0.5)] * len(code)
    assert (by_site == by_site[:, :1]).all()
    assert (by_site[:, 0, prefix:] != 1).any(1).all()
    assert (by_site[..., :prefix] == 1).all()


# Dropout cuts samples off the code of MONAI's VNet, in every other pass.
@pytest.mark.filterwarnings("ignore:Targeted.* leaves samples unmasked whose saliency is all zero")
@EACH_UNPAIRED
def test_a_cooperative_step_trains_every_parameter_that_the_model_uses(row: Row) -> None:
    model, images = row.model(True).float(), row.images().float()
    seed_all(0)
    read = read_logits(model(images), row.classes, images.ndim - 2, row.logits)
    idle = unused(model, read)  # heads beside the segmentation have losses of their own
    labels = torch.randint(max(row.classes, 2), (len(images), *images.shape[2:]))
    heads = {"reconstruction": True, "shape_prior": True, "hard": HardExamples(every=1, separate=False)}
    coop = CooperativeModel(
        model, num_classes=row.classes, example=images, image_range=None, logits=row.logits, **heads
    )
    before = traces(model, buffers=False)
    output = cooperative_backward(coop, images, labels)
    assert traces(model, buffers=False) == before
    assert coop.model is model
    assert all(bool(term.isfinite()) for term in output.losses.values())
    assert output.hard_images is not None
    assert output.hard_images.shape == images.shape
    assert output.logits.shape == (len(images), row.classes, *images.shape[2:])
    without = {name for name, p in coop.named_parameters() if p.requires_grad and p.grad is None}
    assert without <= {f"model.{name}" for name in idle}
    assert all(bool(p.grad.isfinite().all()) for p in coop.parameters() if p.grad is not None)


def test_a_network_without_a_coarser_grid_is_refused() -> None:
    nets = pytest.importorskip("monai.networks.nets")
    with pytest.raises(ValueError, match="found no code in HighResNet on a coarser grid than the input"):
        find_bottleneck(nets.HighResNet(2, 1, 2), torch.randn(2, 1, 32, 32))


def test_an_encoder_whose_levels_are_read_beside_what_it_returns_at_last() -> None:
    transformers = pytest.importorskip("transformers", minversion="5.13")
    text = {"vocab_size": 50, "eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 1, "max_position_embeddings": 16}
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.CLIPSegConfig(
        text_config={**text, **sizes, "num_hidden_layers": 1},
        vision_config={**sizes, "num_hidden_layers": 5, "image_size": 64, "patch_size": 16},
        **{"projection_dim": 20, "extract_layers": [1, 2, 3], "reduce_dim": 16},
        **{"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32},
    )
    model = transformers.CLIPSegForImageSegmentation(config).eval()
    words = torch.tensor([[48, 3, 4, 49], [48, 5, 6, 49]])
    location = find_bottleneck(model, {"pixel_values": torch.randn(2, 3, 64, 64), "input_ids": words})
    assert str(location) == "clip.vision_model['hidden_states'][4]"
    assert location.shape == (2, 17, 24)


def test_metadata_of_monai_tensors_travel_along() -> None:
    data, nets = pytest.importorskip("monai.data"), pytest.importorskip("monai.networks.nets")
    model = nets.BasicUNet(2, 1, 2, features=(4, 8, 16, 32, 64, 8)).eval()
    images = data.MetaTensor(torch.randn(2, 1, 64, 64), meta={"filename": "a"})
    with LatentTap(model) as tap:
        logits = model(images)
        replayed = tap.replay(tap.code)
    assert isinstance(logits, data.MetaTensor)
    assert isinstance(replayed, data.MetaTensor)
    assert torch.equal(replayed.as_tensor(), logits.as_tensor())
