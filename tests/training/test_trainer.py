"""The trainer does what the loop one would have typed does, and leaves everything else alone."""

from __future__ import annotations

import csv
import random
import sys
from functools import partial
from itertools import count
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils._python_dispatch import TorchDispatchMode

import latentaug.training.trainer
from latentaug import CooperativeModel, CooperativeOutput, cooperative_backward, standard_backward
from latentaug.training.callbacks import Callback, CSVLog, Progress, Ramp, TensorBoardLog, default_callbacks
from latentaug.training.metrics import Overlap
from latentaug.training.optimization import PerStep
from latentaug.training.trainer import CooperativeTrainer
from tests.support.tiny_training import At, TinyNet, Wrapper, same_weights, squares, tiny_coop, tiny_trainer, weights_of

# The loop -------------------------------------------------------------------------------------------------------------


def seed_everything(seed: int = 5) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def test_fit_is_the_loop_by_hand():
    model = tiny_coop()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    seed_everything()
    for _ in range(2):
        for images, labels in squares():
            optimizer.zero_grad()
            cooperative_backward(model, images, labels, generator=generator)
            optimizer.step()
    trainer = tiny_trainer(seed=1)
    seed_everything()
    trainer.fit(squares(), epochs=2)
    assert (trainer.epoch, trainer.global_step) == (2, 6)
    assert same_weights(weights_of(trainer), model.state_dict())


def test_accumulation_follows_the_mean_gradient():
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
def test_training_lowers_the_loss(num_classes, spatial_dims):
    trainer = tiny_trainer(tiny_coop(num_classes, spatial_dims), optimizer=partial(torch.optim.Adam, lr=0.03))
    loader = squares(batch_size=3, num_classes=num_classes, size=(8,) * spatial_dims)
    seed_everything()
    trainer.fit(loader, loader, epochs=6)
    first, *_, last = trainer.history
    assert mean(epoch["loss"] for epoch in trainer.history[-3:]) < 0.8 * first["loss"]  # one alone depends on its masks
    assert last["val_loss"] < first["val_loss"]


def test_any_iterable_is_a_loader_and_a_generator_serves_one_epoch():
    batches = list(squares())
    tiny_trainer().fit(tuple(batches), epochs=1)
    trainer = tiny_trainer()
    trainer.fit(iter(batches), epochs=1)
    assert trainer.global_step == 3
    with pytest.raises(ValueError, match=r"at least one batch in every epoch.*generator can be read only once"):
        tiny_trainer().fit(iter(batches), epochs=2)


def test_a_loader_need_not_know_its_length():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(squares().dataset[index] for index in range(6))

    trainer = tiny_trainer()
    trainer.fit(torch.utils.data.DataLoader(Stream(), batch_size=4), epochs=2)
    assert (trainer.epoch, trainer.global_step, trainer.planned_steps) == (2, 4, None)


def test_an_endless_stream_ends_at_max_steps():
    batches = list(squares())

    def stream():
        while True:
            yield from batches

    trainer = tiny_trainer()
    trainer.fit(stream(), max_steps=4)
    assert trainer.global_step == 4


def test_max_steps_cuts_an_epoch_short_and_a_later_fit_continues_it():
    straight, pieces = tiny_trainer(), tiny_trainer()
    seed_everything()
    straight.fit(squares(), epochs=2)
    seed_everything()
    for limit in (2, 3, 4):
        pieces.fit(squares(), epochs=2, max_steps=limit)
        assert pieces.global_step == limit
        assert [row["epoch"] for row in pieces.history] == list(range(1, 1 + -(-limit // 3)))
    assert pieces.epoch == 1
    pieces.fit(squares(), epochs=2)
    assert same_weights(weights_of(straight), weights_of(pieces))
    for one, other in zip(straight.history, pieces.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_fitting_to_where_training_already_is_does_nothing():
    trainer = tiny_trainer()
    trainer.fit(squares(), epochs=1)
    before = weights_of(trainer)
    trainer.fit(squares(), epochs=1)
    trainer.fit(squares(), max_steps=3)
    assert same_weights(before, weights_of(trainer))


def test_losses_in_the_history_are_means_over_batches():
    seen: list[float] = []

    class Record(Callback):
        def on_step(self, trainer, losses):
            seen.append(float(losses["loss"]))

    trainer = tiny_trainer(callbacks=[Record()])
    trainer.fit(squares(), epochs=1)
    row = trainer.history[0]
    assert row["loss"] == pytest.approx(sum(seen) / 3)
    assert row["loss"] == pytest.approx(sum(value for name, value in row.items() if name in trainer.model.weights))


def test_the_seed_decides_where_nothing_else_draws():
    batches = list(squares())

    def run(seed: int, global_seed: int) -> dict[str, torch.Tensor]:
        trainer = tiny_trainer(seed=seed)
        trainer.model.model.decoder[0].p = 0.0
        torch.manual_seed(global_seed)
        trainer.fit(batches, epochs=1)
        return weights_of(trainer)

    assert same_weights(run(1, 1), run(1, 2))
    assert not same_weights(run(1, 1), run(2, 1))


def test_a_frozen_submodule_stays_in_eval_mode_and_all_modes_come_back():
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


def test_a_model_in_eval_mode_is_trained_and_given_back_in_eval_mode():
    trainer = tiny_trainer()
    trainer.model.eval()
    trainer.fit(squares(), epochs=1)
    assert not any(module.training for module in trainer.model.modules())
    assert trainer.model.model.encoder[1].num_batches_tracked == 3


def test_validation_does_not_disturb_training():
    alone, validated = tiny_trainer(), tiny_trainer()
    own = torch.Generator().manual_seed(3)
    seed_everything()
    alone.fit(squares(), epochs=2)
    seed_everything()
    val_loader = torch.utils.data.DataLoader(squares().dataset, batch_size=2, shuffle=True, generator=own)
    state = own.get_state()
    validated.fit(squares(), val_loader, epochs=2)
    assert same_weights(weights_of(alone), weights_of(validated))
    assert torch.equal(own.get_state(), state)


def test_the_standard_step_computes_only_standard_losses_and_their_gradient():
    trainer = tiny_trainer(step=standard_backward, optimizer=partial(torch.optim.SGD, lr=0.1))
    batches = list(squares())
    twin = tiny_coop()
    torch.manual_seed(5)
    twin(*batches[0], generator=torch.Generator().manual_seed(1), stage="standard").loss.backward()
    expected = {name: (p - 0.1 * p.grad).detach() for name, p in twin.named_parameters()}
    torch.manual_seed(5)
    trainer.fit(batches, max_steps=1)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])
    assert not [name for name in trainer.history[0] if "hard" in name]
    assert "shape_from_labels" in trainer.history[0]


class NoSync(TorchDispatchMode):
    """Raises where an accelerator would have to answer before the program goes on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_updates_add_no_wait_for_the_device(monkeypatch):
    def quiet_step(model, images, labels, *, scaler, generator):
        loss = nn.functional.cross_entropy(model.model(images), labels)
        loss.backward()
        return CooperativeOutput(loss, {"segmentation": loss}, images, images, None, None)

    # Labels that are on the CPU may be looked at; make them pass for labels that are elsewhere.
    monkeypatch.setattr(latentaug.training.trainer, "check_batch", lambda images, labels, *_: labels)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    trainer = tiny_trainer(step=quiet_step, optimizer=optimizer, accumulate=2, clip_norm=1.0)
    batches = list(squares())
    with NoSync():
        trainer._update(batches[:2])
    with pytest.raises(AssertionError, match="waits"), NoSync():  # the detector detects
        torch.ones(()).item()


def test_evaluation_counts_without_a_wait_for_the_device():
    overlap = Overlap(num_classes=3, ignore_index=255)
    with NoSync():
        overlap.add(torch.rand(2, 3, 4, 4), torch.randint(3, (2, 4, 4)))
    assert int(overlap.counts.sum()) == 32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_updates_on_cuda_never_synchronise(precision):
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


# Wrapping, optimizers, schedulers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_example", [True, False])
def test_a_plain_model_is_wrapped_from_an_example_or_the_first_batch(from_example):
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


def test_looking_at_the_first_batch_leaves_the_loader_as_it_was():
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


def test_a_wrapped_model_needs_its_number_of_classes():
    with pytest.raises(ValueError, match="needs num_classes to wrap a TinyNet; got None"):
        CooperativeTrainer(TinyNet())


@pytest.mark.parametrize("verb", ["evaluate", "predict", "save", "resume", "load_best"])
def test_what_needs_a_built_model_says_so(verb):
    trainer = CooperativeTrainer(TinyNet(), num_classes=3, callbacks=[])
    with pytest.raises(RuntimeError, match=rf"CooperativeTrainer.{verb} needs the wrapped model.*Pass example="):
        getattr(trainer, verb)(*([] if verb == "load_best" else [[]]))


def test_a_generator_cannot_size_the_heads():
    with pytest.raises(ValueError, match=r"without losing its first batch\. Pass example="):
        CooperativeTrainer(TinyNet(), num_classes=3, callbacks=[]).fit(iter(squares()), epochs=1)


def test_an_optimizer_that_lacks_parameters_is_refused_by_name():
    net = TinyNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"every trainable parameter of the CooperativeModel; it lacks \d+: recons.*lambda"
    ):
        CooperativeTrainer(net, optimizer, num_classes=3, example=torch.rand(2, 1, 8, 8))


def test_an_optimizer_that_holds_all_trainable_parameters_is_taken():
    coop = tiny_coop()
    coop.model.encoder.requires_grad_(False)
    before = coop.model.encoder[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in coop.parameters() if p.requires_grad], lr=0.1)
    trainer = tiny_trainer(coop, optimizer=optimizer)
    assert trainer.optimizer is optimizer
    trainer.fit(squares(), epochs=1)
    assert torch.equal(coop.model.encoder[0].weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be an Optimizer or a callable.*got str"),
        ({"optimizer": lambda parameters: None}, "optimizer must be an Optimizer or a callable.*got NoneType"),
        ({"scheduler": "cosine"}, "scheduler must be an LRScheduler or a callable.*got str"),
        ({"scheduler": lambda optimizer: 3}, "scheduler must be an LRScheduler or a callable.*got int"),
    ],
)
def test_other_things_than_optimizers_and_schedulers_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        tiny_trainer(**options)


def test_a_scheduler_on_another_optimizer_is_refused():
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ValueError, match="scheduler must drive the trainer's own optimizer"):
        tiny_trainer(scheduler=LambdaLR(other, lambda step: 1.0))


@pytest.mark.parametrize(("per_step", "expected"), [(False, [1e-4, 0.5e-4]), (True, [0.125e-4, 0.015625e-4])])
def test_schedulers_advance_per_epoch_or_per_step(per_step, expected):
    def halve(optimizer: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda count: 0.5**count)

    trainer = tiny_trainer(scheduler=PerStep(halve) if per_step else halve)
    assert isinstance(trainer.scheduler, LambdaLR)
    trainer.fit(squares(), epochs=2)
    assert [row["lr"] for row in trainer.history] == pytest.approx(expected)


def test_a_scheduler_that_watches_a_score_sees_the_monitored_one():
    seen = []

    class Watch(ReduceLROnPlateau):
        def step(self, metrics, *args):
            seen.append(float(metrics))
            super().step(metrics, *args)

    trainer = tiny_trainer(scheduler=Watch)
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs a score to watch; got no val_loader"):
        trainer.fit(squares(), epochs=2)
    trainer.fit(squares(), squares(), epochs=2, monitor="dice")
    assert seen == [row["val_dice"] for row in trainer.history]


def test_batch_reads_other_loaders():
    loader = [{"image": images, "label": labels} for images, labels in squares()]
    trainer = tiny_trainer(batch=lambda batch: (batch["image"], batch["label"]))
    trainer.fit(loader, loader, epochs=1)
    assert trainer.global_step == 3


# Precision and clipping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_trains_every_parameter(precision):
    seen = []

    def step(model, images, labels, **options):
        output = cooperative_backward(model, images, labels, **options)
        seen.append(output.logits.dtype)
        return output

    trainer = tiny_trainer(precision=precision, step=step, optimizer=partial(torch.optim.Adam, lr=0.01))
    before = weights_of(trainer)
    trainer.fit(squares(), squares(), epochs=3)
    assert set(seen) == {getattr(torch, precision)}
    after = dict(trainer.model.named_parameters())
    assert [name for name, value in after.items() if torch.equal(before[name], value)] == []
    assert all(parameter.dtype == torch.float32 for parameter in after.values())
    assert trainer.predict(next(iter(squares()))[0]).shape == (2, 8, 8)


def test_half_precision_agrees_with_full_precision():
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = tiny_trainer(precision=precision, step=standard_backward)
        seed_everything()
        trainer.fit(squares(), epochs=1)
        losses[precision] = trainer.history[0]["loss"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


def test_clipping_bounds_the_step():
    def longest_step(clip_norm: float | None) -> float:
        trainer = tiny_trainer(clip_norm=clip_norm, optimizer=partial(torch.optim.SGD, lr=1.0))
        before = dict(weights_of(trainer))
        trainer.fit(squares(), max_steps=1)
        return float(
            torch.stack([(p.detach() - before[name]).norm() for name, p in trainer.model.named_parameters()]).norm()
        )

    assert longest_step(None) > 0.2
    assert longest_step(0.1) == pytest.approx(0.1, rel=1e-3)


# Scores ---------------------------------------------------------------------------------------------------------------


def overlap_by_counting(predicted: torch.Tensor, labels: torch.Tensor, index: int, ignore: int) -> tuple[float, float]:
    both = either = total = 0
    for one, other in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if other == ignore:
            continue
        both += one == index and other == index
        either += one == index or other == index
        total += (one == index) + (other == index)
    return (both / either, 2 * both / total) if either else (float("nan"), float("nan"))


@pytest.mark.parametrize("num_classes", [1, 4])
def test_evaluate_scores_both_outputs_as_counting_pixels_does(num_classes):
    coop = tiny_coop(num_classes, ignore_index=255)
    batches = [(torch.rand(n, 1, 8, 8), torch.randint(min(num_classes, 2) + 1, (n, 1, 8, 8))) for n in (3, 2)]
    for _, labels in batches:
        labels[labels == max(num_classes, 2)] = 1
        labels[..., :3] = 255
    trainer = tiny_trainer(coop)
    scores = trainer.evaluate(batches)

    labels = torch.cat([labels.squeeze(1) for _, labels in batches])
    classes = [1] if num_classes == 1 else list(range(num_classes))
    for refine, prefix in ((0, ""), (1, "refined_")):
        predicted = torch.cat([coop.predict(images, refine=refine) for images, _ in batches])
        expected = [overlap_by_counting(predicted, labels, index, 255) for index in classes]
        for index, (iou, dice) in zip(classes, expected, strict=True):
            assert scores[f"{prefix}iou_{index}"] == pytest.approx(iou, nan_ok=True)
            assert scores[f"{prefix}dice_{index}"] == pytest.approx(dice, nan_ok=True)
        present = [pair for pair in expected if pair[0] == pair[0]]
        for name, values in zip(("iou", "dice"), zip(*present, strict=True), strict=True):
            assert scores[f"{prefix}{name}"] == pytest.approx(sum(values) / len(values))
    assert f"iou_{classes[-1] + 1}" not in scores
    with torch.no_grad():
        means = sum(len(images) * float(coop.eval()(images, labels).loss) for images, labels in batches) / 5
    assert scores["loss"] == pytest.approx(means)


def test_evaluate_leaves_modes_streams_and_gradients_alone():
    trainer = tiny_trainer()
    trainer.model.model.encoder.eval()
    modes = [module.training for module in trainer.model.modules()]
    before = weights_of(trainer)
    seed_everything()
    expected = torch.rand(()), random.random(), np.random.rand()  # noqa: NPY002
    seed_everything()
    first = trainer.evaluate(squares(shuffle=True))
    assert (torch.rand(()), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert [module.training for module in trainer.model.modules()] == modes
    assert same_weights(before, weights_of(trainer))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    seed_everything()
    assert trainer.evaluate(squares(shuffle=True)) == first


@pytest.mark.parametrize("refine", [0, 1, 2])
def test_predict_refines_as_often_as_asked(refine):
    trainer = tiny_trainer()
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(trainer.predict(images, refine=refine), trainer.model.predict(images, refine=refine))
    if refine == 0:
        own = trainer.model.model.eval()(images).argmax(1)
        assert torch.equal(trainer.predict(images, refine=0), own)


# The best epoch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_disk", "monitor"), [(True, "refined_iou"), (False, "dice_1")])
def test_the_best_epoch_is_kept_and_loadable(tmp_path, on_disk, monitor):
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


def test_a_score_that_is_nan_is_never_the_best():
    trainer = tiny_trainer()
    nothing = [(images, torch.full_like(labels, -100)) for images, labels in squares()]
    trainer.fit(squares(), nothing, epochs=1)
    assert trainer.best is None
    with pytest.raises(RuntimeError, match="load_best needs an epoch that was evaluated"):
        trainer.load_best()


def test_an_unknown_monitor_is_refused_before_training():
    trainer = tiny_trainer()
    with pytest.raises(ValueError, match=r"monitor must be a score of evaluate, one of iou, dice,.*got 'miou'"):
        trainer.fit(squares(), squares(), epochs=1, monitor="miou")
    assert trainer.global_step == 0


# Callbacks and logs ---------------------------------------------------------------------------------------------------


def test_callbacks_hear_of_every_moment_in_order():
    heard: list[str] = []

    class Listen(Callback):
        def on_start(self, trainer):
            heard.append(f"start {trainer.planned_steps}")

        def on_step(self, trainer, losses):
            heard.append(f"step {trainer.global_step}")

        def on_epoch(self, trainer, metrics):
            heard.append(f"epoch {metrics['epoch']}")

        def on_end(self, trainer):
            heard.append("end")

    tiny_trainer(callbacks=[Listen()], accumulate=2).fit(squares(), epochs=2)
    assert heard == ["start 4", "step 1", "step 2", "epoch 1", "step 3", "step 4", "epoch 2", "end"]


@pytest.mark.parametrize("step", [2, 3])
def test_a_callback_can_stop_the_fit(step):
    trainer = tiny_trainer(callbacks=[At(step, lambda trainer: trainer.stop())])
    trainer.fit(squares(), epochs=5)
    assert trainer.global_step == step
    assert trainer.epoch == (1 if step == 3 else 0)  # the third is the last of the epoch
    trainer.fit(squares(), epochs=2)
    assert trainer.global_step == 6


def read_rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_log_holds_the_history(tmp_path):
    trainer = tiny_trainer(callbacks=[CSVLog(tmp_path / "logs" / "log.csv")])
    trainer.fit(squares(), epochs=1)
    trainer.fit(squares(), squares(), epochs=3)  # columns that come later are filled from then on
    rows = read_rows(tmp_path / "logs" / "log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["val_iou"] == "" for row in rows] == [True, False, False]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in trainer.history]


def test_tensorboard_gets_every_metric(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = tiny_trainer(callbacks=[TensorBoardLog(tmp_path)])
    trainer.fit(squares(), squares(), epochs=2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(trainer.history[0])
    points = events.Scalars("val_refined_iou")
    assert [point.step for point in points] == [3, 6]
    assert [point.value for point in points] == pytest.approx([row["val_refined_iou"] for row in trainer.history])


def test_tensorboard_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="TensorBoardLog needs the package tensorboard"):
        tiny_trainer(callbacks=[TensorBoardLog(tmp_path)]).fit(squares(), epochs=1)


def test_without_callbacks_given_there_is_progress_and_with_a_folder_logs(tmp_path, monkeypatch):
    def kinds(folder: Any) -> list[str]:
        return [type(callback).__name__ for callback in default_callbacks(folder)]

    assert kinds(None) == ["Progress"]
    assert [type(callback) for callback in CooperativeTrainer(tiny_coop()).callbacks] == [Progress]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert kinds(tmp_path) == ["Progress", "CSVLog"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert kinds(tmp_path) == ["Progress", "CSVLog", "TensorBoardLog"]


def test_progress_is_a_line_per_epoch_where_there_is_no_terminal(capsys):
    trainer = tiny_trainer(callbacks=[Progress()])
    trainer.fit(squares(), squares(), epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[:2] for line in lines] == [["epoch 1", "step 3"], ["epoch 2", "step 6"]]
    assert "0:00:00 left" in lines[1]
    assert all("loss" in line and "val_refined_iou" in line for line in lines)
    trainer.fit((batch for batch in squares()), epochs=3)
    assert "left" not in capsys.readouterr().err  # a stream of unknown length


def test_progress_tells_the_time_left(capsys, monkeypatch):
    clock = count(0, 100)
    monkeypatch.setattr("latentaug.training.callbacks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    tiny_trainer(callbacks=[Progress()]).fit(squares(), epochs=2)
    assert [line.split(", ")[-1] for line in capsys.readouterr().err.splitlines()] == ["0:01:40 left", "0:00:00 left"]


def test_progress_lines_keep_their_distance_but_for_the_first_and_the_last(capsys, monkeypatch):
    clock = count(0, 10)
    monkeypatch.setattr("latentaug.training.callbacks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    tiny_trainer(callbacks=[Progress(every=30)]).fit(squares(), epochs=9)
    shown = [line.split(", ")[0] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["epoch 1", "epoch 4", "epoch 7", "epoch 9"]
    trainer = tiny_trainer(callbacks=[Progress(every=30)])
    trainer.callbacks.append(At(7, lambda trainer: trainer.stop()))
    trainer.fit(squares(), epochs=9)
    assert capsys.readouterr().err.splitlines()[-1].startswith("epoch 3, step 7")


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    tiny_trainer(callbacks=[Progress()]).fit(squares(), squares(), epochs=2)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "val_refined_iou" in shown
    assert "epoch 1," not in shown


# Surroundings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("allocator", "calls"), [(True, 1), (False, 0)])
def test_the_allocator_is_tuned_unless_told_not_to(monkeypatch, allocator, calls):
    called = []
    monkeypatch.setattr(latentaug.training.trainer, "tune_allocator", lambda: called.append(1))
    tiny_trainer(allocator=allocator).fit(squares(), epochs=1)
    assert len(called) == calls


def test_a_tuned_allocator_is_told_of_once(monkeypatch, caplog):
    latentaug.training.trainer._tell_of_allocator.cache_clear()
    monkeypatch.setattr(latentaug.training.trainer, "tune_allocator", lambda: True)
    for _ in range(2):
        tiny_trainer().fit(squares(), epochs=1)
    (record,) = (record for record in caplog.records if "malloc" in record.message)
    assert record.levelname == "WARNING"  # which Python shows where logs are not set up
    assert "allocator=False" in record.message


@pytest.mark.parametrize("native", [True, False])
def test_an_emulated_precision_is_told_of_once(monkeypatch, caplog, native):
    latentaug.training.optimization._tell_of_emulation.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    for precision in ("float32", "bfloat16", "bfloat16"):
        tiny_trainer(precision=precision)
    messages = [record.message for record in caplog.records if "emulated" in record.message]
    assert len(messages) == (not native)
    assert all("in bfloat16" in message and "precision='float32'" in message for message in messages)


def test_a_ramp_follows_from_the_step_number_and_ends_whole(tmp_path):
    def ramped(seen):
        model = tiny_coop(weights={"hard_image_reconstruction": 2.0, "segmentation": 3.0})
        steps = [At(step, lambda _: seen.append(dict(model.weights))) for step in range(1, 7)]
        trainer = tiny_trainer(model)
        trainer.callbacks += [*steps, Ramp(model, 4)]
        return trainer, dict(model.weights)

    seen = []
    trainer, whole = ramped(seen)
    trainer.fit(squares(), max_steps=3)
    assert trainer.model.weights == whole
    trainer.save(tmp_path / "begun.pt")
    resumed, _ = ramped(seen)
    resumed.resume(tmp_path / "begun.pt")
    resumed.fit(squares(), max_steps=6)
    shares = {name: [weights[name] / whole[name] for weights in seen] for name in whole if whole[name]}
    rising = [0.25, 0.5, 0.75, 1, 1, 1]
    hard = ("hard_image_segmentation", "hard_image_reconstruction", "shape_from_hard_image")
    assert all(shares[name] == rising for name in (*hard, "shape_from_hard_segmentation"))
    assert all(share == [1] * 6 for name, share in shares.items() if "hard" not in name)
    assert resumed.model.weights == whole


def test_a_ramp_of_no_length_is_refused():
    with pytest.raises(ValueError, match="Ramp needs a positive number of steps; got 0"):
        Ramp(tiny_coop(), 0)


def test_training_that_diverges_is_told_of_once(caplog):
    trainer = tiny_trainer(step=standard_backward, optimizer=partial(torch.optim.SGD, lr=1e20), allocator=False)
    trainer.fit(squares(), epochs=4)
    (record,) = (record for record in caplog.records if "not a number" in record.message)
    assert record.message.startswith("Epoch 1: ")
    assert "segmentation" in record.message
    assert "clip_norm" in record.message


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_inside_ddp_trains_alike(one_rank, tmp_path):
    # Gradients are summed in the order that DDP needs, not branch by branch.
    plain = tiny_trainer(step=lambda model, *batch, **options: cooperative_backward(Wrapper(model), *batch, **options))
    wrapped = tiny_trainer(nn.parallel.DistributedDataParallel(tiny_coop()), folder=tmp_path / "run")
    for trainer in (plain, wrapped):
        seed_everything()
        trainer.fit(squares(), squares(), epochs=2)
    inside = {name.removeprefix("module."): value for name, value in weights_of(wrapped).items()}
    assert same_weights(weights_of(plain), inside)
    assert plain.history[-1]["val_iou"] == wrapped.history[-1]["val_iou"]
    again = tiny_trainer()  # a checkpoint doesn't know about the wrapper
    again.resume(tmp_path / "run" / "last.pt")
    assert same_weights(weights_of(plain), weights_of(again))


def test_epochs_of_a_distributed_sampler_are_set():
    epochs: list[int] = []

    class Sampler:
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)

    class Loader(list):
        sampler = Sampler()

    tiny_trainer().fit(Loader(squares()), epochs=3)
    assert epochs == [0, 1, 2]
