"""The average of weights: PyTorch's own, bit for bit; what is evaluated and kept, while the model trains on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from latentaug.training.average import Average
from latentaug.training.callbacks import Callback
from latentaug.training.trainer import CooperativeTrainer
from tests.support.random_streams import seed_all
from tests.support.tiny_training import At, headless_coop, same_weights, squares, tiny_trainer, weights_of

DECAY = 0.7


class Beside(Callback):
    """Averages as PyTorch does, beside the trainer."""

    def on_start(self, trainer: Any) -> None:
        self.model = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def on_step(self, trainer: Any, losses: Any) -> None:
        self.model.update_parameters(trainer.model)


def fitted(epochs: int = 2, **options: Any) -> tuple[CooperativeTrainer, Beside]:
    beside = Beside()
    trainer = tiny_trainer(headless_coop(), optimizer=fast, callbacks=[beside], **options)
    seed_all(3)
    trainer.fit(squares(), held_out(), epochs=epochs)
    return trainer, beside


def fast(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def held_out() -> list[Any]:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(2, 2, 1, 8, 8, generator=generator)
    return list(zip(images, (3 * images[:, :, 0]).long(), strict=True))


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


# The average ----------------------------------------------------------------------------------------------------------


def test_it_is_pytorchs_average_bit_for_bit() -> None:
    trainer, beside = fitted(ema=DECAY)
    assert trainer._average is not None
    assert same_weights(dict(trainer._average.state_dict()), parameters_of(beside.model.module))
    assert not same_weights(parameters_of(trainer.model), parameters_of(beside.model.module))


def test_it_begins_with_the_first_update() -> None:
    model, average = nn.Linear(2, 2), Average(0.5)
    with average.weights(model):
        before = parameters_of(model)
    assert same_weights(before, parameters_of(model))
    average.update(model)
    assert same_weights(dict(average.state_dict()), parameters_of(model))


def test_it_averages_every_type_of_number() -> None:
    model, average = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16()), Average(0.5)
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        for one in model.parameters():
            nn.init.normal_(one.data)
        average.update(model)
        expected.update_parameters(model)
    assert same_weights(dict(average.state_dict()), parameters_of(expected.module))


def test_weights_are_put_back_whatever_happens() -> None:
    model, average = nn.Linear(2, 2), Average(0.5)
    average.update(model)
    nn.init.ones_(model.weight)
    own = parameters_of(model)

    def fail() -> None:
        with average.weights(model):
            assert not same_weights(parameters_of(model), own)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same_weights(parameters_of(model), own)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="ema must be"):
        tiny_trainer(ema=decay)


# In the trainer -------------------------------------------------------------------------------------------------------


def test_training_itself_is_as_it_would_be_without() -> None:
    with_average, without = fitted(ema=DECAY)[0], fitted()[0]
    assert same_weights(weights_of(with_average), weights_of(without))
    assert [row["loss"] for row in with_average.history] == [row["loss"] for row in without.history]


def test_the_average_is_evaluated_and_predicts_with_the_models_statistics() -> None:
    trainer, beside = fitted(ema=DECAY)
    raw, images = weights_of(trainer), held_out()[0][0]
    averaged = headless_coop()
    averaged.load_state_dict(raw | parameters_of(beside.model.module))
    by_hand = tiny_trainer(averaged)
    assert trainer.evaluate(held_out()) == by_hand.evaluate(held_out())
    assert trainer.history[-1]["val_loss"] == by_hand.evaluate(held_out())["loss"]
    assert torch.equal(trainer.predict(images), by_hand.predict(images))
    assert same_weights(weights_of(trainer), raw)


@pytest.mark.parametrize("in_folder", [True, False])
def test_the_best_epoch_keeps_the_average(in_folder: bool, tmp_path: Path) -> None:
    trainer, beside = fitted(epochs=1, ema=DECAY, folder=tmp_path if in_folder else None)
    raw = weights_of(trainer)
    trainer.load_best()
    expected = raw | parameters_of(beside.model.module)
    assert same_weights(weights_of(trainer), expected)
    if in_folder:
        assert same_weights(torch.load(tmp_path / "best.pt", weights_only=True)["model"], expected)
    assert trainer.evaluate(held_out())["loss"] == trainer.history[-1]["val_loss"]


def test_a_resume_keeps_the_weights_and_their_average_bit_for_bit(tmp_path: Path) -> None:
    whole, _ = fitted(epochs=3, ema=DECAY)
    saved = tiny_trainer(headless_coop(), optimizer=fast, ema=DECAY)
    saved.callbacks = [At(4, lambda trainer: trainer.save(tmp_path / "a.pt"))]  # in the middle of an epoch
    seed_all(3)
    saved.fit(squares(), held_out(), epochs=3)
    resumed = tiny_trainer(headless_coop(), optimizer=fast, ema=DECAY)
    resumed.resume(tmp_path / "a.pt")
    resumed.fit(squares(), held_out(), epochs=3)
    assert same_weights(weights_of(resumed), weights_of(whole))
    assert whole._average is not None
    assert resumed._average is not None
    assert same_weights(dict(resumed._average.state_dict()), dict(whole._average.state_dict()))
    scores = [{**row, "seconds": 0} for row in whole.history]
    assert [{**row, "seconds": 0} for row in resumed.history] == scores


@pytest.mark.parametrize(("then", "now"), [(None, DECAY), (DECAY, None)])
def test_a_checkpoint_with_an_average_goes_with_a_trainer_with_one(
    then: float | None, now: float | None, tmp_path: Path
) -> None:
    fitted(epochs=1, ema=then)[0].save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"was written with ema .*Build the trainer as it was then"):
        tiny_trainer(headless_coop(), optimizer=fast, ema=now).resume(tmp_path / "a.pt")


def test_an_average_of_another_model_is_refused_and_the_trainer_is_as_it_was(tmp_path: Path) -> None:
    fitted(epochs=1, ema=DECAY)[0].save(tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    state["average"].popitem()
    torch.save(state, tmp_path / "b.pt")
    trainer = tiny_trainer(headless_coop(), optimizer=fast, ema=DECAY)
    before = copy.deepcopy(weights_of(trainer))
    with pytest.raises(ValueError, match=r"b\.pt .*is missing"):
        trainer.resume(tmp_path / "b.pt")
    assert same_weights(weights_of(trainer), before)


def test_between_whole_numbers_there_is_no_mean() -> None:
    model = nn.Linear(2, 2)
    model.table = nn.Parameter(torch.arange(256, dtype=torch.uint8), requires_grad=False)
    average = Average(0.9)
    for _ in range(3):
        average.update(model)
    with average.weights(model):
        assert torch.equal(model.table, torch.arange(256, dtype=torch.uint8))
