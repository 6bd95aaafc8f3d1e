"""A model in eval mode is trained in train mode, but for what the user froze; which is said once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latentaug.cooperative.model import CooperativeModel
from latentaug.training.modes import in_eval_mode, put_in_train_mode
from latentaug.training.trainer import CooperativeTrainer
from tests.support.tiny_training import At, TinyNet, squares, tiny_coop, tiny_trainer


def modes_during(trainer: CooperativeTrainer) -> dict[str, bool]:
    """Fit, and return the modes of all parts meanwhile."""
    seen: dict[str, bool] = {}

    def look(trainer: Any) -> None:
        seen.update({name: module.training for name, module in trainer.model.named_modules()})

    trainer.callbacks.append(At(trainer.global_step + 1, look))
    before = [module.training for module in trainer.model.modules()]
    trainer.fit(squares(), squares(), epochs=trainer.epoch + 1)
    if len(before) == len(list(trainer.model.modules())):  # it was wrapped already
        assert [module.training for module in trainer.model.modules()] == before
    return seen


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "eval mode" in record.message]


@pytest.mark.parametrize("wrapped", ["by the trainer", "from an example", "by the user", "whole in eval mode"])
def test_a_model_that_came_in_eval_mode_is_trained_in_train_mode(
    wrapped: str, caplog: pytest.LogCaptureFixture
) -> None:
    net, example = TinyNet().eval(), torch.rand(2, 1, 8, 8)
    if wrapped == "by the trainer":
        trainer = CooperativeTrainer(net, num_classes=3, callbacks=[])
    elif wrapped == "from an example":
        trainer = CooperativeTrainer(net, num_classes=3, example=example, callbacks=[])
    else:
        coop = CooperativeModel(net, num_classes=3, example=example, codes="encoder")
        trainer = CooperativeTrainer(coop.eval() if wrapped == "whole in eval mode" else coop, callbacks=[])
    seen = modes_during(trainer)
    assert all(seen.values())
    assert not any(module.training for module in net.modules())
    assert net.encoder[1].num_batches_tracked == 3
    modes_during(trainer)
    (message,) = told(caplog)
    assert "came in eval mode, and is trained in train mode. Afterwards" in message


def test_frozen_parts_of_a_model_in_eval_mode_stay_in_it(caplog: pytest.LogCaptureFixture) -> None:
    coop = tiny_coop()
    coop.model.encoder.requires_grad_(False)
    coop.model.eval()
    trainer = tiny_trainer(coop)
    seen = modes_during(trainer)
    assert {name for name, mode in seen.items() if not mode} == {
        "model.encoder", "model.encoder.0", "model.encoder.1", "model.encoder.2",
    }  # fmt: skip
    assert coop.model.encoder[1].num_batches_tracked == 0
    (message,) = told(caplog)
    assert "but for its frozen parts: model.encoder." in message


def test_parts_that_the_user_put_in_eval_mode_stay_in_it_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    trainer = tiny_trainer()
    trainer.model.model.encoder.eval()
    seen = modes_during(trainer)
    assert not seen["model.encoder.1"]
    assert seen["model.decoder.0"]
    (message,) = told(caplog)
    assert message.startswith("These parts are in eval mode, and are trained so: model.encoder.")
    assert [record.levelno for record in caplog.records if record.message == message] == [logging.WARNING]


def test_so_they_do_where_only_what_is_around_their_model_is_in_eval_mode() -> None:
    trainer = tiny_trainer()
    trainer.model.eval()
    trainer.model.model.train()
    trainer.model.model.encoder.eval()
    seen = modes_during(trainer)
    assert not seen["model.encoder.1"]
    assert seen["model.decoder.0"]
    assert seen["shape_prior"]


def test_a_model_in_train_mode_is_not_told_of(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    assert all(modes_during(tiny_trainer()).values())
    assert told(caplog) == []


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_that_is_frozen_as_a_whole_is_the_users_choice(frozen: bool) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).requires_grad_(not frozen).eval()
    around = nn.Sequential(net, nn.Linear(2, 2))
    assert put_in_train_mode(around, net)
    assert net.training == net[1].training == (not frozen)
    assert around.training
    assert around[1].training


def test_modes_are_switched_by_the_modules_own_methods() -> None:
    class Merging(nn.Linear):
        merged = True

        def train(self, mode: bool = True) -> Any:
            self.merged = not mode
            return super().train(mode)

    net = nn.Sequential(Merging(2, 2)).eval()
    put_in_train_mode(net, net)
    assert not net[0].merged


def test_only_the_outermost_of_parts_in_eval_mode_is_named() -> None:
    net = nn.Sequential(nn.Sequential(nn.ReLU(), nn.ReLU()).eval(), nn.Sequential(nn.ReLU(), nn.ReLU().eval()))
    assert list(in_eval_mode(net)) == ["0", "1.1"]
    assert list(in_eval_mode(nn.ReLU().eval())) == ["ReLU"]
