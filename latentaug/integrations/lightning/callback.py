"""One-pass transforms in the training steps of any LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle

from latentaug.augment.base import LatentTransform, mixes_labels
from latentaug.augment.schedule import advance
from latentaug.checks import random_source, shown
from latentaug.cooperative.model import CooperativeModel
from latentaug.discovery.suggest import IMAGE
from latentaug.tap.augmented import Augmented, Transforms, augmented
from latentaug.tap.sampling import Sampler
from latentaug.tracing.location import image_in
from latentaug.tracing.tree import map_tensors


class LatentAugmentation(Callback):
    """Changes codes, or images, in the training steps of any LightningModule: one pass, whatever the transform.

    The network is changed from the start of each training step to its end. Validation, prediction and checkpoints see
    it as it is, and so does whoever uses it after the fit, also after one that failed. Schedules of the transforms
    advance with each update, and go on where a checkpoint was written.

    Args:
        transforms: What `augmented` takes: transforms by layers of the network; or one transform, which goes where its
            paper puts it. One that belongs on images, such as `RandConv` or `GIN`, changes the images of the network's
            calls when it comes without a layer.
        network: Dotted name of the network within the LightningModule, "model" for instance. Default: the only one of
            its children that has parameters. Of a `CooperativeModel`, codes are those of the network within.
        generator: Source of the random numbers. Default: PyTorch's global CPU generator.

    Raises:
        TypeError: Something is no transform, or one that takes more than one pass.
        ValueError: A transform mixes labels; or, when a fit starts, there is no such network or layer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from latentaug import MixStyle
        >>> trainer = Trainer(
        ...     accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[LatentAugmentation(MixStyle())]
        ... )
    """

    def __init__(
        self,
        transforms: Transforms | Sampler,
        *,
        network: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        given = list(transforms.values()) if isinstance(transforms, Mapping) else [transforms]
        for one in given:
            _check_transform(one)
        if network is not None and not isinstance(network, str):
            raise TypeError(f'network must be a name, such as "model"; got {shown(network)}.')
        random_source(generator)
        self.transforms, self.network, self.generator = transforms, network, generator
        self._schedules = nn.ModuleList(given)  # type: ignore[arg-type]
        self._augmented: Augmented | _AugmentedImages | None = None
        self._updates = 0

    @property
    def state_key(self) -> str:
        """What its state is called in a checkpoint."""
        layers = [str(layer) for layer in self.transforms] if isinstance(self.transforms, Mapping) else []
        names = [type(one).__name__ for one in self._schedules]
        return self._generate_state_key(network=self.network, layers=layers, transforms=names)

    def state_dict(self) -> dict[str, Any]:
        """Return how far schedules are."""
        return dict(self._schedules.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._schedules.load_state_dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network and its layers."""
        network = _network_of(pl_module, self.network)
        if _belongs_on_images(self.transforms):
            self._augmented = _AugmentedImages(network, self.transforms, self.generator)
        else:
            codes_of = network.model if isinstance(network, CooperativeModel) else network
            self._augmented = augmented(codes_of, self.transforms, generator=self.generator)
        self._updates = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Change the passes from now on."""
        self._remove()
        if self._augmented is not None:
            self._augmented.attach()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave the network as it was; advance schedules where the weights were updated."""
        self._remove()
        if trainer.global_step != self._updates:
            self._updates = trainer.global_step
            advance(self._schedules)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as it was, where the epoch was cut short."""
        self._remove()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as it was."""
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the network as it was."""
        self._remove()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the network as it was, and let go of it."""
        self._remove()
        self._augmented = None

    def _remove(self) -> None:
        if self._augmented is not None:
            self._augmented.remove()


class _AugmentedImages:
    """Changes the images that a network is called with, in train mode, from `attach` to `remove`."""

    def __init__(self, network: nn.Module, transform: Any, generator: torch.Generator | None) -> None:
        self._network, self._transform, self._generator = network, transform, generator
        self._handle: RemovableHandle | None = None

    def attach(self) -> None:
        self._handle = self._network.register_forward_pre_hook(self._changed, with_kwargs=True)

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _changed(self, network: nn.Module, args: Any, kwargs: Any) -> Any:
        images = image_in((args, kwargs))
        if images is None or not network.training:
            return None
        changed = self._transform.augment(images, generator=self._generator)
        return map_tensors((args, kwargs), lambda tensor: changed if tensor is images else tensor)


def _check_transform(transform: Any) -> None:
    if not isinstance(transform, LatentTransform):
        raise TypeError(f"LatentAugmentation needs transforms; got {shown(transform)}. Pass an instance.")
    name = type(transform).__name__
    if transform.needs:
        raise TypeError(
            f"{name} asks for the {transform.needs[0]}, for which one pass is not enough. Train a CooperativeModule, "
            "CooperativeModel(augment=...), which replays."
        )
    if (mixing := mixes_labels(transform)) is not None:
        raise ValueError(
            f"{mixing} mixes labels, of which a callback doesn't know. Write in training_step: with "
            f"augmented(self.model, {name}()) as run: return run.loss(criterion, self.model(images), labels)."
        )


def _belongs_on_images(transforms: Any) -> bool:
    return not isinstance(transforms, Mapping) and getattr(transforms, "place", "") == IMAGE


def _network_of(module: LightningModule, name: str | None) -> nn.Module:
    """Return the network of a LightningModule.

    Raises:
        ValueError: There is none of that name, or not one alone without a name.
    """
    if name is not None:
        try:
            return module.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"network must name a part of {type(module).__name__}; got {name!r}. {error}.") from error
    trained = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    if len(trained) != 1:
        raise ValueError(
            f"LatentAugmentation finds the network where a LightningModule has one part with parameters; "
            f'{type(module).__name__} has {", ".join(trained) or "none"}. Name it: network="model".'
        )
    return next(iter(trained.values()))
