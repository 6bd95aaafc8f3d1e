"""Lightning's Trainer trains a cooperative model, frugally and automatically, as its users would write it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from latentaug import HardExamples, RandomChannelMask, Schedule, cooperative_backward
from latentaug.integrations.lightning import CooperativeModule
from latentaug.integrations.lightning.frugal import check_frugal
from latentaug.training.finite import NotFiniteError
from tests.integrations.lightning.parts import (
    SAFELY,
    SGD,
    cooperative,
    loader,
    module,
    network,
    samples,
    seed_of,
    trainer,
    weights,
)

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]
BOTH = pytest.mark.parametrize("frugal", [False, True], ids=["automatic", "frugal"])


@BOTH
def test_it_trains_validates_tests_and_predicts(frugal: bool) -> None:
    trained, run = module(frugal=frugal), trainer(max_epochs=6)
    before = run.validate(trained, loader(), verbose=False)[0]
    run.fit(trained, loader(), loader())
    after = {name: float(value) for name, value in run.callback_metrics.items()}
    assert after["val_dice"] > before["val_dice"]
    assert after["val_loss"] < before["val_loss"]
    assert {"loss", "train_loss", "train_segmentation", "train_hard_code_segmentation"} <= after.keys()
    assert not any("refined" in name for name in after)
    tested = run.test(trained, loader(), verbose=False)[0]
    assert tested["test_dice"] == pytest.approx(after["val_dice"])
    images, labels = samples()
    for batches in (loader(), DataLoader(images, batch_size=2), DataLoader(TensorDataset(images), batch_size=2)):
        predicted = torch.cat(run.predict(trained, batches))
        assert torch.equal(predicted, trained.coop.predict(images))
    hits = [
        2 * ((predicted == k) & (labels == k)).sum() / ((predicted == k).sum() + (labels == k).sum()) for k in (0, 1)
    ]
    assert after["val_dice"] == pytest.approx(float(sum(hits) / 2))
    assert after["val_dice_1"] == pytest.approx(float(hits[1]))


def test_a_frugal_step_is_one_of_a_loop_by_hand() -> None:
    trained = module(frugal=True, accumulate=3, clip_norm=0.5)  # the fourth batch of an epoch is a step by itself
    reference = copy.deepcopy(trained.coop).train()
    optimizer = SGD(reference.parameters())
    batches = [*zip(*(one.split(2) for one in samples()), strict=True)]
    for epoch in range(2):
        for number, (images, labels) in enumerate(batches):
            torch.manual_seed(seed_of(epoch, number))
            cooperative_backward(reference, images, labels, scale=1 / 3)
            if number in (2, 3):
                torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    run = trainer(max_epochs=2)
    run.fit(trained, loader())
    assert run.global_step == 4
    for name, value in weights(reference).items():
        assert torch.equal(value, weights(trained.coop)[name]), name


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("lost", [(0,), (1,), (3,), (2, 3)])
def test_a_frugal_step_leaves_out_what_is_not_finite(
    lost: tuple[int, ...], accumulate: int, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = samples()
    for number in lost:
        images[2 * number, 0, 3, 3] = math.nan
    trained = module(cooperative(hard=HardExamples(every=1)), frugal=True, accumulate=accumulate)
    reference = copy.deepcopy(trained.coop).train()
    optimizer = SGD(reference.parameters())
    for number in range(4):
        if number not in lost:
            torch.manual_seed(seed_of(0, number))
            cooperative_backward(reference, images[2 * number :][:2], labels[2 * number :][:2], scale=1 / accumulate)
        if (number + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    trainer().fit(trained, DataLoader(TensorDataset(images, labels), batch_size=2))
    for name, value in weights(reference).items():
        torch.testing.assert_close(value, weights(trained.coop)[name], rtol=1e-4, atol=1e-6, msg=name)
    assert f"Skipped batch {lost[0]} (counted from 0) of epoch 1: not finite were images" in caplog.text
    assert f"in {len(lost)} of 4 batches" in caplog.text


def test_a_frugal_fit_of_nothing_but_such_batches_stops_and_another_begins_anew() -> None:
    images, labels = samples(24)
    trained = module(frugal=True, clip_norm=1.0)
    before = weights(trained.coop.model)
    for _ in range(2):
        with pytest.raises(NotFiniteError, match="10 batches in a row"):
            trainer().fit(trained, DataLoader(TensorDataset(images * math.inf, labels), batch_size=2))
    for name, value in before.items():
        assert torch.equal(value, weights(trained.coop.model)[name]), name
    trainer().fit(trained, loader())


def test_what_is_not_finite_is_left_out_where_losses_are_scaled() -> None:
    images, labels = samples()
    images[2, 0, 3, 3] = math.nan
    trained = module(optimizer=torch.optim.SGD, frugal=True, clip_norm=0.1)
    trainer(plugins=[half("16-mixed")]).fit(trained, DataLoader(TensorDataset(images, labels), batch_size=2))
    assert all(value.isfinite().all() for value in weights(trained.coop).values())


SCHEDULERS: dict[str, Any] = {
    "epoch": lambda optimizer: StepLR(optimizer, 1, 0.5),
    "step": lambda optimizer: {"scheduler": StepLR(optimizer, 1, 0.9), "interval": "step", "frequency": 2},
    "plateau": lambda optimizer: {
        "scheduler": ReduceLROnPlateau(optimizer, "min", patience=0, threshold=1e9, threshold_mode="abs"),
        "monitor": "val_loss",
    },
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_frugal_steps_are_scheduled_and_weigh_as_automatic_ones(name: str) -> None:
    rates, found = [], []
    for options, settings in (
        ({"frugal": True, "accumulate": 2, "clip_norm": 0.5}, {}),
        ({}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}),
    ):
        trained, run = module(scheduler=SCHEDULERS[name], **options), trainer(max_epochs=3, **settings)
        run.fit(trained, loader(6), loader(2))
        rates.append(run.optimizers[0].param_groups[0]["lr"])
        found.append(weights(trained.coop))
    assert rates[0] == rates[1] < 0.1
    for name_, value in found[0].items():
        torch.testing.assert_close(value, found[1][name_], rtol=1e-4, atol=1e-6, msg=name_)


def half(precision: str) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if precision == "16-mixed" else None
    return MixedPrecision(precision, "cpu", scaler)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_scales_nothing_twice(precision: str) -> None:
    """Clipped so that a norm of gradients that are scaled still, or unscaled twice, would show."""
    found = []
    for options, settings in (({"frugal": True, "clip_norm": 0.1}, {}), ({}, {"gradient_clip_val": 0.1})):
        trained = module(optimizer=torch.optim.SGD, **options)
        start = weights(trained.coop)
        trainer(plugins=[half(precision)], **settings).fit(trained, loader(4))
        found.append({name: value - start[name] for name, value in weights(trained.coop).items() if "weight" in name})
    for name, step in found[0].items():
        assert step.any(), name
        torch.testing.assert_close(step, found[1][name], rtol=0.05, atol=0.02 * float(step.abs().max()), msg=name)


@BOTH
def test_a_resumed_fit_ends_where_one_without_a_break_does(frugal: bool, tmp_path: Path) -> None:
    def new() -> CooperativeModule:
        masks = RandomChannelMask(p=Schedule(0.0, 0.9, iterations=10))
        coop = cooperative(augment=masks, shape_prior=True, hard=HardExamples(every=3))
        return module(coop, frugal=frugal, scheduler=SCHEDULERS["epoch"])

    through = new()
    trainer(max_epochs=2).fit(through, loader(8))
    keeps = {"enable_checkpointing": True, "callbacks": [*trainer().callbacks, ModelCheckpoint(tmp_path, "one")]}
    trainer(max_epochs=1, **keeps).fit(new(), loader(8))
    resumed, run = new(), trainer(max_epochs=2)
    run.fit(resumed, loader(8), ckpt_path=tmp_path / "one.ckpt", **SAFELY)
    assert run.global_step == 8
    assert resumed.coop.hard_schedule.calls == 8
    assert resumed.coop.shape_transform.p.iteration == 8
    for name, value in weights(through).items():
        assert torch.equal(value, weights(resumed)[name]), name
    loaded = CooperativeModule.load_from_checkpoint(
        tmp_path / "one.ckpt",
        coop=cooperative(
            augment=RandomChannelMask(p=Schedule(0.0, 0.9, iterations=10)), shape_prior=True, hard=HardExamples(every=3)
        ),
    )
    assert loaded.coop.hard_schedule.calls == 4


def test_it_stops_early_and_scores_each_loader_and_the_shape_prior() -> None:
    trained = module(cooperative(shape_prior=True))
    run = trainer(max_epochs=9, callbacks=[EarlyStopping("val_dice/loader_1", mode="max", min_delta=1.0)])
    run.fit(trained, loader(4), [loader(4), loader(8)])
    assert run.current_epoch == 4
    scores = {name for name in run.callback_metrics if "dice/" in name}
    assert scores == {f"val_{kind}dice/loader_{index}" for kind in ("", "refined_") for index in (0, 1)}


@BOTH
def test_batches_may_be_of_any_kind(frugal: bool) -> None:
    data = [{"image": image, "mask": label} for image, label in zip(*samples(4), strict=True)]
    trained = module(frugal=frugal, batch=lambda batch: (batch["image"], batch["mask"]))
    trainer().fit(trained, DataLoader(data, batch_size=2), DataLoader(data, batch_size=2))
    with pytest.raises(TypeError, match="CooperativeModule needs a loader that yields"):
        trainer().fit(module(frugal=frugal), DataLoader(data, batch_size=2))


def test_called_it_is_the_network() -> None:
    trained = module().eval()
    assert torch.equal(trained(samples()[0]), trained.coop.model(samples()[0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate_grad_batches": 4}, r"Pass it accumulate=4 in place of Trainer\(accumulate_grad_batches=4\)"),
        ({"gradient_clip_val": 0.5}, r"Pass it clip_norm=0.5 in place of Trainer\(gradient_clip_val=0.5\)"),
        ({"strategy": DDPStrategy(static_graph=True)}, "Leave static_graph out"),
        (
            {"callbacks": [StochasticWeightAveraging(0.1)]},
            r"last epoch of StochasticWeightAveraging.*Pass frugal=False",
        ),
    ],
)
def test_settings_that_a_frugal_step_cannot_keep_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**settings).fit(module(frugal=True), loader())


def test_strategies_that_a_frugal_step_does_not_know_are_refused() -> None:
    class Other:
        """Such as FSDP's, which asks for a GPU."""

    run: Any = SimpleNamespace(callbacks=[], accumulate_grad_batches=1, gradient_clip_val=None, strategy=Other())
    with pytest.raises(ValueError, match=r"on one device or with DDP; got Other\. Pass frugal=False"):
        check_frugal(run)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"needs a CooperativeModel; got .*UNet"):
        CooperativeModule(network())
    with pytest.raises(ValueError, match=r"takes accumulate=2 with frugal=True only.*accumulate_grad_batches=2"):
        module(accumulate=2)
    with pytest.raises(ValueError, match=r"takes clip_norm=1.0 with frugal=True only.*gradient_clip_val=1.0"):
        module(clip_norm=1.0)
    with pytest.raises(TypeError, match="scheduler must be a callable"):
        module(scheduler="cosine")
    with pytest.raises(ValueError, match="clip_norm must be a finite number above 0"):
        module(frugal=True, clip_norm=0)


@pytest.mark.parametrize("options", [{}, {"monitor": "val_dise"}])
def test_a_frugal_scheduler_watches_what_is_logged(options: dict[str, str]) -> None:
    trained = module(frugal=True, scheduler=lambda one: {"scheduler": ReduceLROnPlateau(one), **options})
    with pytest.raises(ValueError, match=r"needs a metric that is logged; got monitor=.* with one of loss, .*val_dice"):
        trainer().fit(trained, loader(2), loader(2))


def test_several_optimizers_are_refused_where_the_module_steps_itself() -> None:
    class Several(CooperativeModule):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), 0.1) for _ in range(2)]

    several = Several(module().coop, frugal=True)
    with pytest.raises(ValueError, match="steps one optimizer; configure_optimizers returned 2"):
        trainer(max_epochs=1).fit(several, loader())
