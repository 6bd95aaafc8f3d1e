"""What the trainers add to nnU-Net's: mixins before `nnUNetTrainer`, which none of this imports.

The network stays nnU-Net's own, of its own keys. So checkpoints are stock ones, and a file beside each says so:
`checkpoint_final_stock.pth` predicts where latentaug is not installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.augment.base import LatentTransform
from latentaug.cooperative.given_loss import OutputLoss
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.step import cooperative_backward
from latentaug.tap.augmented import augmented
from latentaug.tracing.location import unwrap

CLIP = 12
"""Largest norm of the gradient, as in nnU-Net's own step."""
KEPT = ("checkpoint_final.pth", "checkpoint_best.pth")
"""What is written for nnU-Net alone as well: what is predicted with."""


class Stock:
    """Writes beside each checkpoint the same under the name of nnU-Net's own trainer."""

    def initialize(self) -> None:
        """Build what nnU-Net builds.

        Raises:
            RuntimeError: The configuration is the second stage of a cascade.
        """
        this: Any = self
        if this.is_cascaded:
            raise RuntimeError(
                f"{type(self).__name__} trains no second stage of a cascade; got {this.configuration_name}. Train 2d, "
                "3d_fullres or 3d_lowres, or take nnUNetTrainer."
            )
        super().initialize()  # type: ignore[misc]

    def save_checkpoint(self, filename: str) -> None:
        """Write the checkpoint, and beside it one that nnU-Net reads alone."""
        super().save_checkpoint(filename)  # type: ignore[misc]
        path = Path(filename)
        if path.name not in KEPT or self.local_rank != 0 or self.disable_checkpointing:  # type: ignore[attr-defined]
            return
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        checkpoint["trainer_name"] = stock_name(type(self))
        target = path.with_name(f"{path.stem}_stock{path.suffix}")
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        torch.save(checkpoint, partial)
        partial.replace(target)

    @property
    def bare(self) -> nn.Module:
        """The network without what nnU-Net wraps it in."""
        return unwrap(self.network)  # type: ignore[attr-defined]


class Cooperative(Stock):
    """Every third step learns from a replay of the network from masked codes as well; the others are nnU-Net's own.

    Attributes:
        every: Steps from one with a replay to the next.
    """

    every = 3
    _cooperative: CooperativeModel | None = None
    _step = 0

    def on_train_epoch_start(self) -> None:
        """Count the steps from the epoch, so that a training goes on as it would have."""
        super().on_train_epoch_start()  # type: ignore[misc]
        self._step = self.current_epoch * self.num_iterations_per_epoch  # type: ignore[attr-defined]

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch."""
        self._step += 1
        if self._step % self.every:
            stock: dict[str, Any] = super().train_step(batch)  # type: ignore[misc]
            return stock
        return {"loss": self._cooperative_step(batch).cpu().numpy()}

    def _cooperative_step(self, batch: dict[str, Any]) -> Tensor:
        this: Any = self
        images = batch["data"].to(this.device, non_blocking=True)
        target = _moved(batch["target"], this.device)
        this.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(this.device.type, enabled=this.device.type == "cuda"):
            model = self._model(images)
            output = cooperative_backward(model, images, target, scaler=this.grad_scaler)
        if this.is_ddp:
            average_gradients(self.bare)
        if this.grad_scaler is not None:
            this.grad_scaler.unscale_(this.optimizer)
        nn.utils.clip_grad_norm_(self.bare.parameters(), CLIP)
        if this.grad_scaler is None:
            this.optimizer.step()
        else:
            this.grad_scaler.step(this.optimizer)
            this.grad_scaler.update()
        return output.losses["segmentation"]

    def _model(self, images: Tensor) -> CooperativeModel:
        """Wrap the network at the first step: its codes are found on real images, under deep supervision."""
        if self._cooperative is None:
            this: Any = self
            self._cooperative = CooperativeModel(
                self.bare,
                num_classes=this.label_manager.num_segmentation_heads,
                example=images[:2].detach().clone(),
                loss=OutputLoss(lambda output, target: this.loss(output, target)),
                image_range=None,
                hard=HardExamples(every=1),
                reconstruction=False,
                shape_prior=False,
            ).train()
            codes = ", ".join(map(str, self._cooperative.shape_codes))
            this.print_to_log_file(f"latentaug: in every {self.every}. step, replays from masked {codes}")
        return self._cooperative


class FineTunes:
    """Starts from the finished training of another trainer on the same fold.

    Attributes:
        starts_from: Name of that trainer.
    """

    starts_from = "nnUNetTrainer"

    def on_train_start(self) -> None:
        """Load the weights of the other training, unless this one was begun.

        Raises:
            FileNotFoundError: There is no such training, or it is not finished.
        """
        this: Any = self
        if not this.was_initialized:
            this.initialize()
        if this.current_epoch == 0:
            path = self._finished()
            weights = torch.load(path, map_location="cpu", weights_only=False)["network_weights"]
            unwrap(this.network).load_state_dict(weights)
            this.print_to_log_file(f"latentaug: starts from {path}")
        super().on_train_start()  # type: ignore[misc]

    def _finished(self) -> Path:
        this: Any = self
        own = Path(this.output_folder_base)
        base = own.name.replace(type(self).__name__, self.starts_from, 1)
        path = own.with_name(base) / f"fold_{this.fold}" / "checkpoint_final.pth"
        if not path.exists():
            dataset, configuration = this.plans_manager.dataset_name, this.configuration_name
            raise FileNotFoundError(
                f"{type(self).__name__} starts from a finished training of {self.starts_from}, and there is no {path}. "
                f"Run first: nnUNetv2_train {dataset} {configuration} {this.fold} -tr {self.starts_from} "
                f"-p {this.plans_manager.plans_name}"
            )
        return path


class ChangesCodes(Stock):
    """Changes codes in the one pass of a training step; the network is not compiled then."""

    def new_transform(self) -> LatentTransform:
        """Return what changes the codes; where, its paper says."""
        raise NotImplementedError

    def _do_i_compile(self) -> bool:
        return False

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch."""
        if not hasattr(self, "_run"):
            self._run = augmented(self.bare, self.new_transform())
        with self._run:
            result: dict[str, Any] = super().train_step(batch)  # type: ignore[misc]
        return result


class ChangesImages(Stock):
    """Changes the images of a training step, on the device."""

    def new_transform(self) -> LatentTransform:
        """Return what changes images [B, C, *S], and keeps their scale: nnU-Net's have no bounds."""
        raise NotImplementedError

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch."""
        images = batch["data"].to(self.device, non_blocking=True)  # type: ignore[attr-defined]
        batch = {**batch, "data": self.new_transform().augment(images)}
        result: dict[str, Any] = super().train_step(batch)  # type: ignore[misc]
        return result


def stock_name(trainer: type) -> str:
    """Return the name of the trainer of nnU-Net's own that another derives from."""
    return next(one.__name__ for one in trainer.__mro__ if one.__module__.startswith("nnunetv2."))


def average_gradients(network: nn.Module) -> None:
    """Average gradients over all ranks of `torch.distributed`; a parameter without one counts as zero there.

    DDP does so in passes of the wrapped network alone, and a step of `cooperative_backward` runs several of the bare
    one.
    """
    ranks = torch.distributed.get_world_size()
    for parameter in network.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= ranks


def _moved(target: Any, device: torch.device) -> Any:
    if isinstance(target, list):
        return [one.to(device, non_blocking=True) for one in target]
    return target.to(device, non_blocking=True)
