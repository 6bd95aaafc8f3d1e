"""`transformers.Trainer` trains a cooperative model, as its users would write it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentaug import CooperativeModel, HardExamples
from latentaug.integrations.huggingface import CooperativeForSegmentation

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

from accelerate.state import AcceleratorState  # noqa: E402
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments  # noqa: E402


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    """What a `Trainer` sets up stays for the life of its process, in the way of the tests that follow."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def samples(count: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        labels = torch.randint(2, (4, 4), generator=generator).repeat_interleave(8, 0).repeat_interleave(8, 1)
        made.append({"pixel_values": labels + 0.1 * torch.randn(3, 32, 32, generator=generator), "labels": labels})
    return made


def segformer() -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16, 16, 32], "decoder_hidden_size": 16, "num_attention_heads": [1, 1, 2, 2]}
    quiet = {"classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=2, **sizes, **quiet))


def unet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 2, 4, 4))


def example() -> Tensor:
    return torch.stack([one["pixel_values"] for one in samples(2)])


def cooperative(model: nn.Module | None = None, **options: Any) -> CooperativeForSegmentation:
    given: dict[str, Any] = {"num_classes": 2, "example": example(), "hard": HardExamples(every=1)} | options
    return CooperativeForSegmentation(model or segformer(), **given)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    usual = {"max_steps": 6, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, "logging_steps": 1}
    return TrainingArguments(str(folder), **usual | {"learning_rate": 1e-2, "disable_tqdm": True} | options)


def test_it_trains_is_evaluated_and_its_predictions_are_logits(tmp_path: Path) -> None:
    def metrics(found: Any) -> dict[str, float]:
        assert found.predictions.shape == (4, 2, 32, 32)
        return {"accuracy": float(np.mean(found.predictions.argmax(1) == found.label_ids))}

    trainer = Trainer(
        cooperative(), arguments(tmp_path), train_dataset=samples(), eval_dataset=samples(4), compute_metrics=metrics
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before
    assert 0.5 < after["eval_accuracy"] <= 1


def test_accumulated_batches_are_averaged(tmp_path: Path) -> None:
    weights = []
    for batch, steps in ((4, 1), (2, 2)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 2}
        torch.manual_seed(0)
        model = cooperative(unet(), weights={"hard_code_segmentation": 0.0})
        Trainer(model, arguments(tmp_path, optim="sgd", max_grad_norm=0, **options), train_dataset=samples()).train()
        weights.append(dict(model.named_parameters()))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-5, atol=1e-7, msg=name)


def test_it_returns_what_transformers_models_do() -> None:
    model = cooperative()
    one = {name: value[None] for name, value in samples(1)[0].items()}
    assert {*model.train()(**one)} == {"loss", "logits"}
    model.eval()
    assert {*model(**one)} == {"loss", "logits"}
    assert {*model(one["pixel_values"])} == {"logits"}
    assert model(one["pixel_values"]).logits.shape == (1, 2, 32, 32)
    assert model.config is model.coop.model.config
    with pytest.raises(ValueError, match="needs `labels` in train mode"):
        model.train()(one["pixel_values"])


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    plain = cooperative()
    checkpointed = cooperative()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    assert "model.segformer.stages.0.blocks.0" in checkpointed.coop.checkpointed
    batch = [torch.stack([one[name] for one in samples(2)]) for name in ("pixel_values", "labels")]
    for model in (plain, checkpointed):
        torch.manual_seed(0)
        model.train()(*batch).loss.backward()
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)
    checkpointed.gradient_checkpointing_disable()
    assert not checkpointed.coop.checkpointed


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}])
def test_trainer_turns_checkpointing_on(tmp_path: Path, options: dict[str, Any]) -> None:
    model = cooperative()
    given = arguments(tmp_path, gradient_checkpointing=True, max_steps=1, **options)
    Trainer(model, given, train_dataset=samples()).train()
    assert model.coop.checkpointed


def test_every_so_many_blocks_are_checkpointed() -> None:
    model = cooperative()
    model.activation_checkpointing_enable(every_n_layers=1)
    every = model.coop.checkpointed
    model.activation_checkpointing_enable(every_n_layers=2)
    assert model.coop.checkpointed == every[::2]
    model.activation_checkpointing_disable()
    assert not model.coop.checkpointed
    with pytest.raises(ValueError, match="got offload=True"):
        model.gradient_checkpointing_enable(offload=True)


def test_settings_that_take_the_labels_away_are_named(tmp_path: Path) -> None:
    trainer = Trainer(cooperative(), arguments(tmp_path, label_smoothing_factor=0.1), train_dataset=samples())
    with pytest.raises(ValueError, match="leave label_smoothing_factor and compute_loss_func out"):
        trainer.train()


def test_a_model_without_blocks_has_none_to_checkpoint() -> None:
    with pytest.raises(ValueError, match="Sequential has no blocks that transformers would checkpoint"):
        cooperative(unet()).gradient_checkpointing_enable()


@pytest.mark.parametrize("every", [1, None])  # by default a count of batches stands beside the model, which is no head
@pytest.mark.parametrize("shape_prior", [False, True])
def test_what_is_saved_is_read_without_latentaug(tmp_path: Path, shape_prior: bool, every: int | None) -> None:
    model = cooperative(shape_prior=shape_prior, hard=HardExamples(every=every))
    model.save_pretrained(tmp_path)
    read = SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(read(example()).logits, model.coop.model.eval()(example()).logits)
    assert (tmp_path / "latentaug_heads.pt").exists() is shape_prior


def test_heads_that_are_saved_are_read_back(tmp_path: Path) -> None:
    model = cooperative(shape_prior=True, hard=HardExamples())
    model.coop.hard_schedule()
    model.save_pretrained(tmp_path)
    other = cooperative(
        SegformerForSemanticSegmentation.from_pretrained(tmp_path), shape_prior=True, hard=HardExamples()
    )
    unread = other.coop.load_state_dict(torch.load(tmp_path / "latentaug_heads.pt", weights_only=True), strict=False)
    assert not unread.unexpected_keys
    for (name, value), same in zip(model.coop.state_dict().items(), other.coop.state_dict().values(), strict=True):
        assert torch.equal(value, same), name


def test_the_state_dict_of_another_model_is_saved(tmp_path: Path) -> None:
    model = unet()
    cooperative(model).save_pretrained(tmp_path)
    assert torch.load(tmp_path / "pytorch_model.bin", weights_only=True).keys() == model.state_dict().keys()


def test_what_it_holds_returns_what_it_does_elsewhere() -> None:
    model = cooperative()
    assert isinstance(model.coop, CooperativeModel)
    batch = [torch.stack([one[name] for one in samples(2)]) for name in ("pixel_values", "labels")]
    assert model.coop(*batch).losses.keys() == {"segmentation", "hard_code_segmentation"}
