"""A `CooperativeModel` as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau

from latentaug.augment.schedule import advance
from latentaug.checks import flag, function, number, shown, whole
from latentaug.cooperative.averaging import average_gradients
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.output import CooperativeOutput
from latentaug.cooperative.step import cooperative_backward
from latentaug.integrations.lightning.frugal import (
    check_frugal,
    over_ranks,
    watched,
    without_reducing,
)
from latentaug.training.batches import made_by
from latentaug.training.evaluation import losses_of, overlaps_of, scores_of
from latentaug.training.finite import FiniteGuard, Watched, has_gradient
from latentaug.training.metrics import Overlap
from latentaug.training.optimization import OptimizerChoice, build_optimizer

SchedulerChoice: TypeAlias = Callable[[Any], Any]
"""Callable (optimizer) that returns a scheduler, or Lightning's dictionary around one."""
AUTOMATIC = ("monitor", "reduce_on_plateau", "strict")
"""What Lightning ignores of such a dictionary, with a warning, under manual optimisation."""


class CooperativeModule(LightningModule):
    """A LightningModule that trains a `CooperativeModel`, validates it by Dice, and predicts.

    As it comes, Lightning calls the model and backpropagates its loss, and all that a Trainer does works as ever. With
    `frugal=True` a step is `cooperative_backward`, in less memory than the first: one of manual optimisation,
    for which Lightning leaves accumulation and clipping to the module. A frugal step keeps a batch whose images, losses
    or gradients are infinite or not a number out of the weights and running statistics, and the log names it, as in
    `CooperativeTrainer`; ten in a row stop the fit.

    Logged, each as the mean over an epoch and over all ranks: `train_loss`, `train_` with the name of each other loss,
    the same with `val_`; and the scores of `CooperativeTrainer.evaluate`, `val_dice` for instance, of all samples, with
    `refined_` where there is a shape prior. `trainer.test` does so with `test_`. The bar shows the `loss` of a batch.
    Scores of several loaders are named `val_dice/loader_0` and so on.

    Args:
        coop: The model.
        optimizer: Callable that makes one from a list of parameters, or an instance that holds every trainable one.
            Default: the paper's Adam with a learning rate of 1e-4.
        scheduler: Callable that makes a learning rate scheduler from the optimizer, or Lightning's dictionary around
            one: {"scheduler": ..., "interval": "step"}. A bare scheduler advances once per epoch.
        batch: Callable that turns what a loader yields into (images, labels). Default: it yields such pairs.
        frugal: Whether a step backpropagates each loss as its branch ends, in little memory; on one device or with DDP.
        accumulate: Batches per update, where frugal; the gradient is their sum divided by this number, as Lightning has
            it, also for the last group of an epoch, which may have fewer. Otherwise say it to the Trainer.
        clip_norm: Largest norm of the gradient, where frugal; a larger one is scaled down. Otherwise say it to the
            Trainer.

    Shape:
        images: [B, C, *S].   labels: [B, *S] or [B, 1, *S]; of regions [B, num_classes, *S].

    Raises:
        TypeError: `coop` is no `CooperativeModel`, or an argument is of another kind.
        ValueError: `accumulate` or `clip_norm` is out of range, or given though not frugal.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> unet = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 2, 4, 4))
        >>> batches = [(torch.rand(2, 1, 16, 16), torch.randint(2, (2, 16, 16))) for _ in range(3)]
        >>> coop = CooperativeModel(unet, num_classes=2, example=batches[0][0])
        >>> module = CooperativeModule(coop, partial(torch.optim.Adam, lr=1e-3), frugal=True)
        >>> module.automatic_optimization
        False
    """

    def __init__(
        self,
        coop: CooperativeModel,
        optimizer: OptimizerChoice | None = None,
        *,
        scheduler: SchedulerChoice | None = None,
        batch: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
        frugal: bool = False,
        accumulate: int = 1,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(coop, CooperativeModel):
            raise TypeError(
                f"CooperativeModule needs a CooperativeModel; got {shown(coop)}. Write CooperativeModel(network, "
                "num_classes=..., example=images)."
            )
        function("scheduler", scheduler)
        function("batch", batch)
        self.automatic_optimization = not flag("frugal", frugal)
        whole("accumulate", accumulate, of="batches per update")
        if clip_norm is not None:
            number("clip_norm", clip_norm, above=0)
        for ours, given, theirs in (
            (f"accumulate={accumulate}", accumulate != 1, f"accumulate_grad_batches={accumulate}"),
            (f"clip_norm={clip_norm}", clip_norm is not None, f"gradient_clip_val={clip_norm}"),
        ):
            if given and not frugal:
                raise ValueError(
                    f"CooperativeModule takes {ours} with frugal=True only. Leave it out, and pass Trainer({theirs})."
                )
        self.coop = coop
        self.accumulate, self.clip_norm = accumulate, clip_norm
        self._optimizer, self._scheduler = optimizer, scheduler
        self._to_pair = made_by(batch, "CooperativeModule")
        self._monitored: str | None = None
        self._guard = FiniteGuard()
        self._overlaps: list[list[Overlap]] = []

    # Hooks of Lightning's -------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Any:
        """Return what the network does, in eval mode."""
        return self.coop(images)

    def configure_optimizers(self) -> Any:
        """Make the optimizer, and the scheduler where there is one."""
        optimizer = build_optimizer(self._optimizer, self.coop)
        if self._scheduler is None:
            return optimizer
        scheduler = self._scheduler(optimizer)
        if not self.automatic_optimization and isinstance(scheduler, Mapping):
            self._monitored = scheduler.get("monitor")
            scheduler = {name: value for name, value in scheduler.items() if name not in AUTOMATIC}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def configure_callbacks(self) -> Any:
        """Refuse, before anything runs, what a frugal step can't do: Lightning's first call of a fit."""
        if not self.automatic_optimization and self.trainer.state.fn == TrainerFn.FITTING:
            check_frugal(self.trainer)
            self._guard.begin()
        return super().configure_callbacks()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Train on a batch; return its loss."""
        images, labels = self._to_pair(batch)
        if self.automatic_optimization:
            output: CooperativeOutput = self.coop(images, labels)
        else:
            output = self._frugal_step(images, labels, batch_idx)
        losses = losses_of(output)
        self.log("loss", over_ranks(self.trainer, losses["loss"]), prog_bar=True, logger=False)
        self._log_means("train", losses, len(images))
        return output.loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, and advance the schedules of transforms."""
        super().optimizer_step(*args, **kwargs)
        advance(self.coop)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let DDP send the buffers of rank 0 before the next batch, which it leaves under manual optimisation."""
        if not self.automatic_optimization and isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.trainer.strategy.model.require_forward_param_sync = True

    def on_train_epoch_end(self) -> None:
        """Say what was left out, and advance schedulers that watch a metric, as Lightning does by itself otherwise."""
        if not self.automatic_optimization:
            self._guard.end_epoch(self.trainer.current_epoch + 1, self.trainer.fit_loop.epoch_loop.batch_idx + 1)
            self._step_schedulers("epoch", self.trainer.current_epoch, plateaus=True)
            self._guard.check()

    def on_validation_epoch_start(self) -> None:
        """Count from zero."""
        self._overlaps = [overlaps_of(self.coop, self.device) for _ in self.trainer.num_val_batches]

    def on_test_epoch_start(self) -> None:
        """Count from zero."""
        self._overlaps = [overlaps_of(self.coop, self.device) for _ in self.trainer.num_test_batches]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the standard losses of a batch, and count where the segmentation agrees with its labels."""
        self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Do the same for `trainer.test`."""
        self._evaluate("test", batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of all samples of all ranks."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of all samples of all ranks."""
        self._log_scores("test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the label map [B, *S] of images, or of the images of a pair."""
        if isinstance(batch, list | tuple) and len(batch) == 1:
            batch = batch[0]
        return self.coop.predict(batch if isinstance(batch, Tensor) else self._to_pair(batch)[0])

    # A frugal step --------------------------------------------------------------------------------------------------

    def _frugal_step(self, images: Tensor, labels: Tensor, batch_idx: int) -> CooperativeOutput:
        optimizer: Any = self.optimizers()
        if isinstance(optimizer, list):
            raise ValueError(
                "CooperativeModule with frugal=True steps one optimizer; configure_optimizers returned "
                f"{len(optimizer)}. Return one, with a parameter group for each part, or write a training_step."
            )
        if batch_idx % self.accumulate == 0:
            optimizer.zero_grad()
        accumulated = batch_idx % self.accumulate > 0
        guarded = Watched(self._guard, self.coop, accumulated=accumulated, scaler=self._scaler)
        with without_reducing(self.trainer):
            output = cooperative_backward(
                self.coop, images, labels, backward=self.manual_backward, scale=1 / self.accumulate, average=False
            )
        guarded.settle(self.trainer.current_epoch + 1, batch_idx, images, losses_of(output))
        self._guard.check(images)
        last = self.trainer.is_last_batch
        if (batch_idx + 1) % self.accumulate == 0 or last:
            if has_gradient(self.coop):
                average_gradients(self)
                self._clip()
                optimizer.step()
            advance(self.coop)
            self._step_schedulers("step", batch_idx)
        if last:
            self._step_schedulers("epoch", self.trainer.current_epoch)
        return output

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _clip(self) -> None:
        if self.clip_norm is not None:
            scaler = self._scaler
            scale = 1.0 if scaler is None else scaler.get_scale()  # gradients are unscaled as the optimizer steps
            nn.utils.clip_grad_norm_(self.parameters(), scale * self.clip_norm)

    def _step_schedulers(self, interval: str, done: int, *, plateaus: bool = False) -> None:
        """Advance the schedulers of an interval when Lightning would with automatic optimisation."""
        for config in self.trainer.lr_scheduler_configs:
            due = config.interval == interval and (done + 1) % config.frequency == 0
            if due and isinstance(config.scheduler, ReduceLROnPlateau) == plateaus:
                self.lr_scheduler_step(config.scheduler, watched(self.trainer, self._monitored) if plateaus else None)

    # Losses and scores ----------------------------------------------------------------------------------------------

    def _evaluate(self, stage: str, batch: Any, dataloader_idx: int) -> None:
        images, labels = self._to_pair(batch)
        output: CooperativeOutput = self.coop(images, labels)
        for overlap, logits in zip(self._overlaps[dataloader_idx], (output.logits, output.refined), strict=True):
            overlap.add(logits, labels)
        self._log_means(stage, losses_of(output), len(images))

    def _log_means(self, stage: str, losses: Mapping[str, Tensor], samples: int) -> None:
        named = {f"{stage}_{name}": loss for name, loss in losses.items()}
        self.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, batch_size=samples)

    def _log_scores(self, stage: str) -> None:
        for index, overlaps in enumerate(self._overlaps):
            for overlap in overlaps:
                overlap.counts = self.trainer.strategy.reduce(overlap.counts, reduce_op="sum")
            scores = scores_of(overlaps)
            if self.coop.shape_prior is None:
                scores = {name: score for name, score in scores.items() if not name.startswith("refined_")}
            suffix = f"/loader_{index}" if len(self._overlaps) > 1 else ""
            for name, score in scores.items():
                named, shows = f"{stage}_{name}{suffix}", name in ("dice", "refined_dice")
                self.log(named, score, prog_bar=shows, sync_dist=True)  # alike on all ranks
