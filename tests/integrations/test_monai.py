"""MONAI's trainer trains a cooperative model, as its users would write it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug import CooperativeModel, HardExamples, cooperative_backward
from latentaug.integrations.monai import iteration_update, prepare_batch
from latentaug.training.finite import NotFiniteError

pytest.importorskip("monai")
pytest.importorskip("ignite")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*ignite.*"),
]

from monai.data import DataLoader, Dataset, MetaTensor  # noqa: E402
from monai.engines import SupervisedEvaluator, SupervisedTrainer  # noqa: E402
from monai.engines.utils import IterationEvents  # noqa: E402
from monai.inferers import SlidingWindowInferer  # noqa: E402
from monai.losses import DiceCELoss  # noqa: E402
from monai.networks.nets import UNet  # noqa: E402


def samples(count: int = 4, *, of: type = torch.Tensor) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        labels = torch.randint(2, (1, 4, 4), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
        image = labels + 0.1 * torch.randn(1, 32, 32, generator=generator)
        made.append({"image": MetaTensor(image) if of is MetaTensor else image, "label": labels})
    return made


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(2, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)


def cooperative(**options: Any) -> CooperativeModel:
    images = torch.stack([one["image"] for one in samples()])
    given: dict[str, Any] = {"num_classes": 2, "hard": HardExamples(every=1), "image_range": None} | options
    return CooperativeModel(network(), example=images, **given)


def trainer(model: nn.Module, data: list[dict[str, Tensor]], **options: Any) -> SupervisedTrainer:
    given: dict[str, Any] = {
        "device": "cpu",
        "max_epochs": 1,
        "train_data_loader": DataLoader(Dataset(data), batch_size=2),
        "network": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loss_function": lambda *_: pytest.fail("the losses are the model's own"),
        "iteration_update": iteration_update,
    }
    return SupervisedTrainer(**given | options)


@pytest.mark.parametrize("of", [torch.Tensor, MetaTensor])
def test_it_trains_and_its_predictions_are_logits(of: type) -> None:
    losses: list[dict[str, Tensor]] = []
    engine = trainer(cooperative(), samples(of=of), max_epochs=8)
    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda engine: losses.append(engine.state.losses))
    engine.run()
    assert {*losses[0]} == {"segmentation", "hard_code_segmentation"}
    assert losses[-1]["segmentation"] < losses[0]["segmentation"]
    assert engine.state.output[0]["pred"].shape == (2, 32, 32)  # decollated, as MONAI's own


def test_events_are_those_of_an_iteration_in_order() -> None:
    seen: list[str] = []
    engine = trainer(cooperative(), samples(2))
    for event in IterationEvents:
        engine.add_event_handler(event, lambda _, event=event: seen.append(event.name))
    engine.run()
    assert seen == ["FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED"]


def test_accumulated_gradients_are_those_of_the_mean_and_an_epoch_ends_with_a_step() -> None:
    data = samples(6)  # three batches, two of which are accumulated
    model = cooperative(weights={"hard_code_segmentation": 0.0})
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1)
    images, labels = (torch.stack([one[key] for one in data]).split(2) for key in ("image", "label"))
    batches = [*zip(images, labels, strict=True)]
    for together in (batches[:2], batches[2:]):
        optimizer.zero_grad()
        for batch in together:
            cooperative_backward(reference.train(), *batch, scale=1 / 2)
        optimizer.step()
    trainer(model, data, accumulation_steps=2).run()
    for name, value in reference.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("of", [torch.Tensor, MetaTensor])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_batch_that_is_not_finite_leaves_no_trace(lost: int, of: type, caplog: pytest.LogCaptureFixture) -> None:
    data = samples(6, of=of)
    model = cooperative(weights={"hard_code_segmentation": 0.0})
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1)
    for together in ((0, 1), (2,)):
        optimizer.zero_grad()
        for number in together:
            pair = data[2 * number : 2 * number + 2]
            batch = (torch.stack([torch.Tensor(one[key]).to(one[key].dtype) for one in pair]) for key in pair[0])
            if number != lost:
                cooperative_backward(reference.train(), *batch, scale=1 / 2)
        optimizer.step()
    data[2 * lost]["image"][0, 3, 3] = torch.inf
    trainer(model, data, accumulation_steps=2).run()
    for name, value in reference.state_dict().items():
        if isinstance(value, Tensor) and "extra_state" not in name:
            assert torch.equal(value, model.state_dict()[name]), name
    assert f"Skipped batch {lost} (counted from 0) of epoch 1: not finite were images" in caplog.text
    assert "in 1 of 3 batches" in caplog.text


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.filterwarnings("ignore:.*CUDA.*:UserWarning")
def test_gradients_that_are_not_finite_are_left_out_though_losses_are(amp: bool) -> None:
    model = cooperative(weights={"hard_code_segmentation": 0.0})
    model.model.model[0].conv.unit0.conv.weight.register_hook(lambda gradient: gradient * torch.nan)
    before = {name: value.detach().clone() for name, value in model.model.named_parameters()}
    trainer(model, samples(), amp=amp).run()
    for name, value in before.items():
        assert torch.equal(value, model.model.get_parameter(name)), name


@pytest.mark.filterwarnings("ignore:Targeted.* leaves samples unmasked")
def test_training_on_nothing_but_such_batches_stops() -> None:
    data = [one | {"image": one["image"] * torch.nan} for one in samples(12)]
    with pytest.raises(NotFiniteError, match="10 batches in a row"):
        trainer(cooperative(), data, max_epochs=2).run()


def test_monais_own_iteration_trains_it_with_one_line_more() -> None:
    model = cooperative()
    engine = trainer(
        model,
        samples(),
        iteration_update=None,
        prepare_batch=prepare_batch,
        loss_function=lambda output, labels: output.loss,
        decollate=False,
    )
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    engine.run()
    changed = [not torch.equal(value, before[name]) for name, value in model.named_parameters()]
    assert sum(changed) > len(changed) / 2  # biases before a norm have no gradient


def test_a_batch_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match='needs labels; got a batch without "label"'):
        prepare_batch({"image": torch.zeros(1, 1, 8, 8)})


def test_losses_of_monai_get_labels_with_their_channel() -> None:
    model = cooperative(loss=DiceCELoss(to_onehot_y=True, softmax=True))
    trainer(model, samples()).run()


@pytest.mark.parametrize("shape_prior", [False, True])
def test_windows_slide_over_the_model_and_what_is_deployed_of_it(shape_prior: bool) -> None:
    model = cooperative(shape_prior=shape_prior).eval()
    image = torch.randn(1, 1, 48, 48)
    inferer = SlidingWindowInferer((32, 32), overlap=0.5)
    assert torch.equal(inferer(image, model), inferer(image, model.model))
    refined = inferer(image, model.deployed(refine=1))
    assert refined.shape == (1, 2, 48, 48)
    assert torch.equal(refined, inferer(image, model.model)) is not shape_prior


def test_an_evaluator_validates_it() -> None:
    model = cooperative()
    engine = SupervisedEvaluator("cpu", DataLoader(Dataset(samples()), batch_size=2), network=model)
    engine.run()
    assert engine.state.output[0]["pred"].shape == (2, 32, 32)


def test_a_bundle_like_configuration_trains(tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    configuration = {
        "imports": ["$import torch", "$import latentaug", "$from latentaug.integrations import monai as door"],
        "data": samples(),
        "loader": {"_target_": "DataLoader", "dataset": {"_target_": "Dataset", "data": "@data"}, "batch_size": 2},
        "unet": {
            "_target_": "UNet",
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 2,
            "channels": [8, 16, 32],
            "strides": [2, 2],
        },
        "network": {
            "_target_": "latentaug.CooperativeModel",
            "model": "@unet",
            "num_classes": 2,
            "example": "$torch.stack([one['image'] for one in @data])",
        },
        "trainer": {
            "_target_": "SupervisedTrainer",
            "device": "cpu",
            "max_epochs": 1,
            "train_data_loader": "@loader",
            "network": "@network",
            "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.1},
            "loss_function": "$None",
            "iteration_update": "$door.iteration_update",
        },
    }
    json.dumps({name: value for name, value in configuration.items() if name != "data"})  # as in a file of a bundle
    parser = ConfigParser(configuration)
    parser.get_parsed_content("imports")
    parser.get_parsed_content("trainer").run()
