"""What is deployed: a copy that predicts what the cooperative model does, and goes through every exporter."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.cooperative.deployed import DeployedModel
from latentaug.cooperative.model import CooperativeModel
from latentaug.nets.functional import to_labels
from tests.models.segmenters import Levels, SkipNet, Supervised, Tokens
from tests.support.cooperation import batch, cooperative, small_ftn
from tests.support.tiny_training import tiny_trainer


class Remembering(nn.Sequential):
    """Keeps what it has returned, with its graph."""

    def forward(self, images: Tensor) -> Tensor:
        self.last = super().forward(images)
        return self.last


def remembering() -> nn.Module:
    return Remembering(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 4))


MODELS: dict[str, dict[str, Any]] = {
    "FTN": {"build": small_ftn},
    "skips": {},
    "levels": {"build": Levels, "size": (16, 24)},
    "deep supervision": {"build": Supervised},
    "tokens": {"build": Tokens, "num_classes": 2, "codes": "block", "size": (16, 16)},
    "one logit": {"num_classes": 1},
    "3-D": {"size": (6, 8, 8)},
    "half the size": {"build": functools.partial(nn.Conv2d, 1, 3, 4, 2, 1), "codes": ""},
}


def compiled(model: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(model, backend="eager")  # the default one would call a C++ compiler for a minute
    return wrapped


def trained(name: str) -> tuple[CooperativeModel, Tensor]:
    options = dict(MODELS[name])
    coop = cooperative(**options)
    images, labels = batch(options.get("num_classes", 3), options.get("size", (16, 20)))
    coop(images, labels).loss.backward()  # statistics move, and the reader learns which output is the segmentation
    return coop, images


@pytest.mark.parametrize("refine", [0, 1])
@pytest.mark.parametrize("name", MODELS)
def test_its_logits_are_those_that_predict_is_made_of(name: str, refine: int) -> None:
    coop, images = trained(name)
    logits = coop.deployed(refine)(images)
    assert logits.shape == (len(images), coop.num_classes, *images.shape[2:])
    assert torch.equal(to_labels(logits), coop.predict(images, refine))


@pytest.mark.parametrize("name", MODELS)
def test_it_is_exported(name: str) -> None:
    coop, images = trained(name)
    program = torch.export.export(coop.deployed(), (images,))
    assert torch.equal(to_labels(program.module()(images)), coop.predict(images))


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("name", ["FTN", "tokens", "one logit"])
def test_it_is_exported_to_onnx(name: str) -> None:
    pytest.importorskip("onnxscript")
    coop, images = trained(name)
    program: Any = torch.onnx.export(coop.deployed(), (images,), dynamo=True)
    reference = pytest.importorskip("onnx.reference")
    (logits,) = reference.ReferenceEvaluator(program.model_proto).run(None, {"images": images.numpy()})
    assert torch.equal(to_labels(torch.from_numpy(logits)), coop.predict(images))


def test_nothing_that_is_done_to_it_reaches_the_users_model() -> None:
    coop, images = trained("skips")
    before = {name: value.clone() for name, value in coop.state_dict().items()}
    made = coop.deployed()
    assert not any(module.training for module in made.modules())
    assert all(module.training for module in coop.model.modules())
    made.train()
    made(images)
    with torch.no_grad():
        for one in made.parameters():
            one.zero_()
    assert all(torch.equal(value, before[name]) for name, value in coop.state_dict().items())
    assert not any(one.requires_grad for one in made.parameters())


def test_the_networks_keys_are_its_own_under_one_prefix() -> None:
    coop, _ = trained("skips")
    keys = coop.model.state_dict().keys()
    assert coop.shape_prior is not None
    prior = [f"shape_prior.{key}" for key in coop.shape_prior.state_dict()]
    assert [*coop.deployed(0).state_dict()] == [f"model.{key}" for key in keys]
    assert [*coop.deployed(1).state_dict()] == [f"model.{key}" for key in keys] + prior
    coop.model.load_state_dict(coop.deployed().model.state_dict())


@pytest.mark.parametrize("wrap", [compiled, lambda model: model], ids=["compiled", "plain"])
def test_a_compiled_network_is_deployed_as_it_was_written(wrap: Callable[[nn.Module], nn.Module]) -> None:
    images = batch()[0]
    torch.manual_seed(0)
    network = SkipNet(num_classes=3)
    made = CooperativeModel(wrap(network), num_classes=3, example=images, shape_prior=False).deployed()
    assert [*made.state_dict()] == [f"model.{key}" for key in network.state_dict()]
    torch.testing.assert_close(made(images), network.eval()(images))


def test_a_network_that_keeps_what_it_returned_is_copied() -> None:
    coop = cooperative(remembering, shape_prior=False)
    images, labels = batch()
    coop(images, labels).loss.backward()
    assert torch.equal(coop.deployed()(images).argmax(1), coop.predict(images))


def test_it_is_written_and_read() -> None:
    coop, images = trained("FTN")
    file = io.BytesIO()
    torch.save(coop.deployed(), file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert isinstance(read, DeployedModel)
    assert torch.equal(read(images).argmax(1), coop.predict(images))


def test_the_trainer_deploys_the_average() -> None:
    trainer = tiny_trainer(ema=0.9, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    images = torch.rand(4, 2, 1, 8, 8)
    trainer.fit(list(zip(images, (3 * images[:, :, 0]).long(), strict=True)), epochs=1)
    made = trainer.deployed()
    assert torch.equal(made(images[0]).argmax(1), trainer.predict(images[0]))
    raw = trainer.model.state_dict()
    assert not torch.equal(made.state_dict()["model.encoder.0.weight"], raw["model.encoder.0.weight"])


@pytest.mark.parametrize("refine", [-1, 0.5, True])
def test_how_often_it_is_refined_is_a_whole_number(refine: Any) -> None:
    coop, _ = trained("FTN")
    with pytest.raises(ValueError, match="refine must be a whole number of steps"):
        coop.deployed(refine)
