"""The trainer does what the loop one would have typed does, and leaves everything else alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latentaug.training.allocator
import latentaug.training.trainer
import latentaug.training.wrapping
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward, standard_backward
from latentaug.training.callbacks import Callback
from latentaug.training.optimization import Precision
from latentaug.training.trainer import CooperativeTrainer
from tests.support.random_streams import seed_all
from tests.support.synchronisation import NoSync
from tests.support.tiny_training import (
    At,
    TinyNet,
    Wrapper,
    same_weights,
    squares,
    tiny_coop,
    tiny_trainer,
    update,
    weights_of,
)

# The loop -------------------------------------------------------------------------------------------------------------


def test_fit_is_the_loop_by_hand() -> None:
    model = tiny_coop()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    seed_all(5)
    for _ in range(2):
        for images, labels in squares():
            optimizer.zero_grad()
            cooperative_backward(model, images, labels, generator=generator)
            optimizer.step()
    trainer = tiny_trainer(seed=1)
    seed_all(5)
    trainer.fit(squares(), epochs=2)
    assert (trainer.epoch, trainer.global_step) == (2, 6)
    assert same_weights(weights_of(trainer), model.state_dict())


def test_accumulation_follows_the_mean_gradient() -> None:
    batches = list(squares(length=10))  # five batches: the last group is short
    model = tiny_coop()
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(5)
    for group in (batches[:2], batches[2:4], batches[4:]):
        gradients = []
        for images, labels in group:
            model.zero_grad()
            cooperative_backward(model, images, labels, generator=generator)
            gradients.append([parameter.grad for parameter in model.parameters()])
        with torch.no_grad():
            for parameter, *parts in zip(model.parameters(), *gradients, strict=True):
                parameter -= 0.1 * torch.stack(parts).mean(0)
    trainer = tiny_trainer(seed=1, accumulate=2, optimizer=partial(torch.optim.SGD, lr=0.1))
    torch.manual_seed(5)
    trainer.fit(batches, epochs=1)
    assert trainer.global_step == 3
    for name, value in weights_of(trainer).items():
        torch.testing.assert_close(value, model.state_dict()[name])


@pytest.mark.parametrize(("num_classes", "spatial_dims"), [(1, 2), (3, 2), (3, 3)])
def test_training_lowers_the_loss(num_classes: int, spatial_dims: int) -> None:
    trainer = tiny_trainer(tiny_coop(num_classes, spatial_dims), optimizer=partial(torch.optim.Adam, lr=0.03))
    loader = squares(batch_size=3, num_classes=num_classes, size=(8,) * spatial_dims)
    seed_all(5)
    trainer.fit(loader, loader, epochs=6)
    first, *_, last = trainer.history
    assert mean(epoch["loss"] for epoch in trainer.history[-3:]) < 0.8 * first["loss"]  # one alone depends on its masks
    assert last["val_loss"] < first["val_loss"]


def test_an_endless_stream_ends_at_max_steps() -> None:
    batches = list(squares())

    def stream() -> Iterator[Any]:
        while True:
            yield from batches

    trainer = tiny_trainer()
    trainer.fit(stream(), max_steps=4)
    assert trainer.global_step == 4


def test_max_steps_cuts_an_epoch_short_and_a_later_fit_continues_it() -> None:
    straight, pieces = tiny_trainer(), tiny_trainer()
    seed_all(5)
    straight.fit(squares(), epochs=2)
    seed_all(5)
    for limit in (2, 3, 4):
        pieces.fit(squares(), epochs=2, max_steps=limit)
        assert pieces.global_step == limit
        assert [row["epoch"] for row in pieces.history] == list(range(1, 1 + -(-limit // 3)))
    assert pieces.epoch == 1
    pieces.fit(squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(pieces))
    for one, other in zip(straight.history, pieces.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_fitting_to_where_training_already_is_does_nothing() -> None:
    trainer = tiny_trainer()
    trainer.fit(squares(), epochs=1)
    before = weights_of(trainer)
    trainer.fit(squares(), epochs=1)
    trainer.fit(squares(), max_steps=3)
    assert same_weights(before, weights_of(trainer))


def test_losses_in_the_history_are_means_over_batches() -> None:
    seen: list[float] = []

    class Record(Callback):
        def on_step(self, trainer: Any, losses: Any) -> None:
            seen.append(float(losses["loss"]))

    trainer = tiny_trainer(callbacks=[Record()])
    trainer.fit(squares(), epochs=1)
    row = trainer.history[0]
    assert row["loss"] == pytest.approx(sum(seen) / 3)
    assert row["loss"] == pytest.approx(sum(value for name, value in row.items() if name in trainer.model.weights))


def test_the_seed_decides_where_nothing_else_draws() -> None:
    batches = list(squares())

    def run(seed: int, global_seed: int) -> dict[str, torch.Tensor]:
        trainer = tiny_trainer(seed=seed)
        trainer.model.model.decoder[0].p = 0.0
        torch.manual_seed(global_seed)
        trainer.fit(batches, epochs=1)
        return weights_of(trainer)

    assert same_weights(run(1, 1), run(1, 2))
    assert not same_weights(run(1, 1), run(2, 1))


def test_a_frozen_submodule_stays_in_eval_mode_and_all_modes_come_back() -> None:
    trainer = tiny_trainer()
    norm = trainer.model.model.encoder[1].eval()
    modes = []
    trainer.callbacks = [At(1, lambda trainer: modes.append((trainer.model.training, norm.training)))]
    before = norm.running_mean.clone()
    trainer.fit(squares(), squares(), epochs=1)
    assert modes == [(True, False)]
    assert torch.equal(norm.running_mean, before)
    assert trainer.model.training
    assert not norm.training


def test_a_model_in_eval_mode_is_trained_and_given_back_in_eval_mode() -> None:
    trainer = tiny_trainer()
    trainer.model.eval()
    trainer.fit(squares(), epochs=1)
    assert not any(module.training for module in trainer.model.modules())
    assert trainer.model.model.encoder[1].num_batches_tracked == 3


def test_validation_does_not_disturb_training() -> None:
    alone, validated = tiny_trainer(), tiny_trainer()
    own = torch.Generator().manual_seed(3)
    seed_all(5)
    alone.fit(squares(), epochs=2)
    seed_all(5)
    val_loader = torch.utils.data.DataLoader(squares().dataset, batch_size=2, shuffle=True, generator=own)
    state = own.get_state()
    validated.fit(squares(), val_loader, epochs=2)
    assert same_weights(weights_of(alone), weights_of(validated))
    assert torch.equal(own.get_state(), state)


def test_the_standard_step_computes_only_standard_losses_and_their_gradient() -> None:
    trainer = tiny_trainer(step=standard_backward, optimizer=partial(torch.optim.SGD, lr=0.1))
    batches = list(squares())
    twin = tiny_coop()
    torch.manual_seed(5)
    twin(*batches[0], generator=torch.Generator().manual_seed(1), stage="first").loss.backward()
    expected = {name: (p - 0.1 * p.grad).detach() for name, p in twin.named_parameters()}
    torch.manual_seed(5)
    trainer.fit(batches, max_steps=1)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])
    assert not [name for name in trainer.history[0] if "hard" in name]
    assert "shape_from_labels" in trainer.history[0]


def test_updates_add_no_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def quiet_step(model: Any, images: Tensor, labels: Tensor, *, scaler: Any, generator: Any) -> CooperativeOutput:
        loss = nn.functional.cross_entropy(model.model(images), labels)
        loss.backward()
        return CooperativeOutput(loss, {"segmentation": loss}, images, images, None, None)

    # Labels that are on the CPU may be looked at; make them pass for labels that are elsewhere.
    monkeypatch.setattr(latentaug.training.wrapping, "check_batch", lambda images, labels, *_, **__: labels)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    trainer = tiny_trainer(step=quiet_step, optimizer=optimizer, accumulate=2, clip_norm=1.0)
    batches = list(squares())
    with NoSync():
        update(trainer, batches[:2])
    with pytest.raises(AssertionError, match="waits"), NoSync():  # the detector detects
        torch.ones(()).item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_updates_on_cuda_never_synchronise(precision: Precision) -> None:
    trainer = tiny_trainer(precision=precision, device="cuda", clip_norm=1.0, accumulate=2)
    batches = [(images.cuda(), labels.cuda()) for images, labels in squares(length=12)]
    trainer.fit(batches, max_steps=1)
    trainer.callbacks = [
        At(2, lambda _: torch.cuda.set_sync_debug_mode("error")),
        At(3, lambda _: torch.cuda.set_sync_debug_mode("default")),
    ]
    try:
        trainer.fit(batches, max_steps=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Wrapping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_example", [True, False])
def test_a_plain_model_is_wrapped_from_an_example_or_the_first_batch(from_example: bool) -> None:
    net = TinyNet()
    example = torch.rand(2, 1, 8, 8) if from_example else None
    trainer = CooperativeTrainer(net, num_classes=3, example=example, callbacks=[])
    trainer.fit(squares(), epochs=1)
    assert isinstance(trainer.model, CooperativeModel)
    assert trainer.model.model is net
    assert trainer.global_step == 3
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters()}
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.optimizer.defaults["lr"] == 1e-4


def test_looking_at_the_first_batch_leaves_the_loader_as_it_was() -> None:
    def loader() -> torch.utils.data.DataLoader:
        generator = torch.Generator().manual_seed(3)
        return torch.utils.data.DataLoader(squares().dataset, batch_size=2, shuffle=True, generator=generator)

    seen: list[torch.Tensor] = []

    def pair(batch: Any) -> Any:
        seen.append(batch[1])
        return batch

    CooperativeTrainer(TinyNet(), num_classes=3, batch=pair, callbacks=[]).fit(loader(), epochs=1)
    look, *trained_on = seen
    expected = [labels for _, labels in loader()]
    assert torch.equal(look, expected[0])
    assert all(torch.equal(one, other) for one, other in zip(trained_on, expected, strict=True))


def test_a_wrapped_model_needs_its_number_of_classes() -> None:
    with pytest.raises(ValueError, match="needs num_classes to wrap a TinyNet; got None"):
        CooperativeTrainer(TinyNet())


def test_another_number_of_classes_than_the_model_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs num_classes=3, as the CooperativeModel has, or None; got 7"):
        CooperativeTrainer(tiny_trainer().model, num_classes=7)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "save", "resume", "load_best"])
def test_what_needs_a_built_model_says_so(verb: str) -> None:
    trainer = CooperativeTrainer(TinyNet(), num_classes=3, callbacks=[])
    with pytest.raises(RuntimeError, match=rf"CooperativeTrainer.{verb} needs the wrapped model.*Pass example="):
        getattr(trainer, verb)(*([] if verb == "load_best" else [[]]))


def test_a_generator_cannot_size_the_heads() -> None:
    with pytest.raises(ValueError, match=r"without losing its first batch\. Pass example="):
        CooperativeTrainer(TinyNet(), num_classes=3, callbacks=[]).fit(iter(squares()), epochs=1)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number, 1 or more; got 0"),
        ({"epochs": -3}, "epochs must be a whole number, 1 or more; got -3"),
        ({"max_steps": 0}, "max_steps must be a whole number, 1 or more; got 0"),
        ({}, "fit needs epochs or max_steps; got neither"),
    ],
)
def test_a_fit_that_would_do_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_trainer().fit(squares(), **options)


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_empty_loader_is_refused(wrapped: bool) -> None:
    trainer = tiny_trainer() if wrapped else CooperativeTrainer(TinyNet(), num_classes=3, callbacks=[])
    with pytest.raises(ValueError, match="fit needs a loader that yields at least one batch"):
        trainer.fit([], epochs=1)


def test_an_empty_validation_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluate needs a loader that yields at least one batch"):
        tiny_trainer().fit(squares(), [], epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "precision must be 'float32', 'bfloat16' or 'float16'; got 'half'"),
        ({"accumulate": 0}, "accumulate must be a whole number of batches per update, 1 or more; got 0"),
        ({"clip_norm": 0.0}, r"clip_norm must be a finite number above 0; got 0\.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_trainer(**options)


# Scores, and the best epoch -------------------------------------------------------------------------------------------


def test_evaluate_leaves_modes_streams_and_gradients_alone() -> None:
    trainer = tiny_trainer()
    trainer.model.model.encoder.eval()
    modes = [module.training for module in trainer.model.modules()]
    before = weights_of(trainer)
    seed_all(5)
    expected = torch.rand(()), random.random(), np.random.rand()  # noqa: NPY002
    seed_all(5)
    first = trainer.evaluate(squares(shuffle=True))
    assert (torch.rand(()), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert [module.training for module in trainer.model.modules()] == modes
    assert same_weights(before, weights_of(trainer))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    seed_all(5)
    assert trainer.evaluate(squares(shuffle=True)) == first


@pytest.mark.parametrize("refine", [0, 1, 2])
def test_predict_refines_as_often_as_asked(refine: int) -> None:
    trainer = tiny_trainer()
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(trainer.predict(images, refine=refine), trainer.model.predict(images, refine=refine))
    if refine == 0:
        own = trainer.model.model.eval()(images).argmax(1)
        assert torch.equal(trainer.predict(images, refine=0), own)


@pytest.mark.parametrize(("on_disk", "monitor"), [(True, "refined_iou"), (False, "dice_1")])
def test_the_best_epoch_is_kept_and_loadable(tmp_path: Path, on_disk: bool, monitor: str) -> None:
    trainer = tiny_trainer(folder=tmp_path if on_disk else None, optimizer=partial(torch.optim.Adam, lr=0.05))
    val_loader = list(squares())
    trainer.fit(squares(), val_loader, epochs=6, monitor=monitor)
    values = [row[f"val_{monitor}"] for row in trainer.history]
    assert trainer.best.value == max(values)
    assert trainer.best.epoch == 1 + values.index(max(values))
    assert (trainer.best.weights is None) == on_disk
    trainer.load_best()
    assert trainer.evaluate(val_loader)[monitor] == max(values)
    if on_disk:
        fresh = tiny_coop()
        fresh.load_state_dict(torch.load(tmp_path / "best.pt", weights_only=True)["model"])
        assert tiny_trainer(fresh).evaluate(val_loader)[monitor] == max(values)


def test_a_score_that_is_nan_is_never_the_best() -> None:
    trainer = tiny_trainer()
    nothing = [(images, torch.full_like(labels, -100)) for images, labels in squares()]
    trainer.fit(squares(), nothing, epochs=1)
    assert trainer.best is None
    with pytest.raises(RuntimeError, match="load_best needs an epoch that was evaluated"):
        trainer.load_best()


def test_an_unknown_monitor_is_refused_before_training() -> None:
    trainer = tiny_trainer()
    with pytest.raises(ValueError, match=r"monitor must be a score of evaluate, one of iou, dice,.*got 'miou'"):
        trainer.fit(squares(), squares(), epochs=1, monitor="miou")
    assert trainer.global_step == 0


# Surroundings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("allocator", "calls"), [(True, 1), (False, 0)])
def test_the_allocator_is_tuned_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, allocator: bool, calls: int
) -> None:
    called = []
    monkeypatch.setattr(latentaug.training.trainer, "tune_allocator", lambda: called.append(1))
    tiny_trainer(allocator=allocator).fit(squares(), epochs=1)
    assert len(called) == calls


def test_a_tuned_allocator_is_told_of_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    latentaug.training.allocator.tell_of_allocator.cache_clear()
    monkeypatch.setattr(latentaug.training.trainer, "tune_allocator", lambda: True)
    for _ in range(2):
        tiny_trainer().fit(squares(), epochs=1)
    (record,) = (record for record in caplog.records if "malloc" in record.message)
    assert record.levelname == "WARNING"  # which Python shows where logs are not set up
    assert "allocator=False" in record.message


def test_training_that_diverges_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    trainer = tiny_trainer(step=standard_backward, optimizer=partial(torch.optim.SGD, lr=1e20), allocator=False)
    trainer._guard.max_skipped = 100  # or it would stop
    trainer.fit(squares(), epochs=4)
    (record,) = (record for record in caplog.records if "not a number" in record.message)
    assert record.message.startswith("Epoch 1: ")
    assert "shape_from_logits" in record.message
    assert "clip_norm" in record.message


@pytest.mark.usefixtures("process_group")
def test_a_model_inside_ddp_trains_alike(tmp_path: Path) -> None:
    # Gradients are summed in the order that DDP needs, not branch by branch.
    plain = tiny_trainer(step=lambda model, *batch, **options: cooperative_backward(Wrapper(model), *batch, **options))
    wrapped = tiny_trainer(nn.parallel.DistributedDataParallel(tiny_coop()), folder=tmp_path / "run")
    for trainer in (plain, wrapped):
        seed_all(5)
        trainer.fit(squares(), squares(), epochs=2)
    inside = {name.removeprefix("module."): value for name, value in weights_of(wrapped).items()}
    assert same_weights(weights_of(plain), inside)
    assert plain.history[-1]["val_iou"] == wrapped.history[-1]["val_iou"]
    again = tiny_trainer()  # a checkpoint doesn't know about the wrapper
    again.resume(tmp_path / "run" / "last.pt")
    assert same_weights(weights_of(plain), weights_of(again))
