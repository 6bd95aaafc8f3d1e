"""What the trainers add to nnU-Net's: mixins before `nnUNetTrainer`, which is imported for its types alone.

The network stays nnU-Net's own, of its own keys. So checkpoints are stock ones, and a file beside each says so:
`checkpoint_final_stock.pth` predicts where latentaug is not installed.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latentaug.augment.base import LatentTransform, mixes_labels
from latentaug.cooperative.given_loss import OutputLoss
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.step import cooperative_backward
from latentaug.tap.augmented import Augmented, augmented
from latentaug.tracing.location import unwrap

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer
else:
    Trainer = object

CLIP = 12
"""Largest norm of the gradient, as in nnU-Net's own step."""
KEPT = ("checkpoint_final.pth", "checkpoint_best.pth")
"""What is written for nnU-Net alone as well: what is predicted with."""


class Stock(Trainer):
    """Writes beside each checkpoint the same under the name of nnU-Net's own trainer."""

    def initialize(self) -> None:
        """Build what nnU-Net builds.

        Raises:
            RuntimeError: The configuration is the second stage of a cascade.
        """
        if self.is_cascaded:
            raise RuntimeError(
                f"{type(self).__name__} trains no second stage of a cascade; got {self.configuration_name}. Train 2d, "
                "3d_fullres or 3d_lowres, or take nnUNetTrainer."
            )
        super().initialize()

    def save_checkpoint(self, filename: str) -> None:
        """Write the checkpoint, and beside it one that nnU-Net reads alone."""
        super().save_checkpoint(filename)
        path = Path(filename)
        if path.name not in KEPT or self.local_rank != 0 or self.disable_checkpointing:
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
        return unwrap(self.network)


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
        super().on_train_epoch_start()
        self._step = self.current_epoch * self.num_iterations_per_epoch

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch."""
        self._step += 1
        if self._step % self.every:
            stock: dict[str, Any] = super().train_step(batch)
            return stock
        return {"loss": self._cooperative_step(batch).cpu().numpy()}

    def _cooperative_step(self, batch: dict[str, Any]) -> Tensor:
        images = batch["data"].to(self.device, non_blocking=True)
        target = _moved(batch["target"], self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            model = self._model(images)
            output = cooperative_backward(model, images, target, scaler=self.grad_scaler)
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.bare.parameters(), CLIP)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        return output.losses["segmentation"]

    def _model(self, images: Tensor) -> CooperativeModel:
        """Wrap the network at the first step: its codes are found on real images, under deep supervision."""
        if self._cooperative is None:
            self._cooperative = CooperativeModel(
                self.bare,
                num_classes=self.label_manager.num_segmentation_heads,
                example=images[:2].detach().clone(),
                loss=OutputLoss(lambda output, target: self.loss(output, target)),
                image_range=None,
                hard=HardExamples(every=1),
                reconstruction=False,
                shape_prior=False,
            ).train()
            codes = ", ".join(map(str, self._cooperative.shape_codes))
            self.print_to_log_file(f"latentaug: in every {self.every}. step, replays from masked {codes}")
        return self._cooperative


class FineTunes(Trainer):
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
        if not self.was_initialized:
            self.initialize()
        if self.current_epoch == 0:
            path = self._finished()
            weights = torch.load(path, map_location="cpu", weights_only=False)["network_weights"]
            unwrap(self.network).load_state_dict(weights)
            self.print_to_log_file(f"latentaug: starts from {path}")
        super().on_train_start()

    def _finished(self) -> Path:
        own = Path(self.output_folder_base)
        base = own.name.replace(type(self).__name__, self.starts_from, 1)
        path = own.with_name(base) / f"fold_{self.fold}" / "checkpoint_final.pth"
        if not path.exists():
            dataset, configuration = self.plans_manager.dataset_name, self.configuration_name
            raise FileNotFoundError(
                f"{type(self).__name__} starts from a finished training of {self.starts_from}, and there is no {path}. "
                f"Run first: nnUNetv2_train {dataset} {configuration} {self.fold} -tr {self.starts_from} "
                f"-p {self.plans_manager.plans_name}"
            )
        return path


class Transforms(Stock):
    """Trains with a transform of latentaug's."""

    def new_transform(self) -> LatentTransform:
        """Return the transform: of images [B, C, *S], one that keeps their scale, as nnU-Net's have no bounds."""
        raise NotImplementedError(f"{type(self).__name__} needs a method new_transform() -> LatentTransform.")

    @cached_property
    def transform(self) -> LatentTransform:
        """The transform of this training.

        Raises:
            ValueError: It mixes labels, of which nnU-Net's step doesn't know.
        """
        transform = self.new_transform()
        if (mixing := mixes_labels(transform)) is not None:
            raise ValueError(
                f"{type(self).__name__} trains on labels as they are, and {mixing} mixes them. Return another "
                'transform; MoEx(labels="keep") keeps them.'
            )
        return transform


class ChangesCodes(Transforms):
    """Changes codes in the one pass of a training step, where the transform's paper does; nothing is compiled then."""

    def _do_i_compile(self) -> bool:
        return False

    @cached_property
    def changed_codes(self) -> Augmented:
        """A context in which passes of the network have changed codes."""
        return augmented(self.bare, self.transform)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch."""
        with self.changed_codes:
            result: dict[str, Any] = super().train_step(batch)
        return result


class ChangesImages(Transforms):
    """Changes the images of a training step, on the device."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch."""
        images = batch["data"].to(self.device, non_blocking=True)
        result: dict[str, Any] = super().train_step({**batch, "data": self.transform.augment(images)})
        return result


def stock_name(trainer: type) -> str:
    """Return the name of the trainer of nnU-Net's own that another derives from."""
    return next(one.__name__ for one in trainer.__mro__ if one.__module__.startswith("nnunetv2."))


def _moved(target: Any, device: torch.device) -> Any:
    if isinstance(target, list):
        return [one.to(device, non_blocking=True) for one in target]
    return target.to(device, non_blocking=True)
