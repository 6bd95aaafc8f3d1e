"""The model that a trainer trains: as it was given, or wrapped as soon as there are images to size its heads with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from latentaug.cooperative.compiling import opened
from latentaug.cooperative.model import CooperativeModel
from latentaug.training.batches import check_batch, made_by
from latentaug.training.finite import FiniteGuard
from latentaug.training.random_streams import preserved_random_streams
from latentaug.training.sharding import check_sharding
from latentaug.training.updating import Batch


class Wrapped:
    """A `CooperativeModel`, also inside `DistributedDataParallel`, or a model that becomes one.

    Args:
        model: The model.
        num_classes: Classes of the segmentation; only for a model that is to be wrapped.
        example: Images to size the heads with; without them `wrap` is to be called.
        device: Where to train. Default: where the model is.
        batch: Callable that turns what a loader yields into (images, labels). Default: it yields such pairs.

    Attributes:
        outer: The model as the training step sees it.
        inner: The `CooperativeModel` in it, once there is one.
        device: Where it is.

    Raises:
        ValueError: `num_classes` is missing, or another one than the model has; or the model can't be trained here.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None,
        example: Tensor | None,
        device: torch.device | str | None,
        batch: Callable[[Any], tuple[Tensor, Tensor]] | None,
    ) -> None:
        check_sharding(model)
        given = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.device = given if device is None else torch.device(device)
        self.outer = opened(model).to(self.device)
        inner = getattr(self.outer, "module", self.outer)
        self.inner = inner if isinstance(inner, CooperativeModel) else None
        self._batch, self._to_pair = batch, made_by(batch)
        if self.inner is not None:
            if num_classes not in (None, self.inner.num_classes):
                raise ValueError(
                    f"CooperativeTrainer needs num_classes={self.inner.num_classes}, as the CooperativeModel has, or "
                    f"None; got {num_classes}."
                )
        elif num_classes is None:
            raise ValueError(
                f"CooperativeTrainer needs num_classes to wrap a {type(model).__name__}; got None. "
                "Pass num_classes=, or a CooperativeModel."
            )
        else:
            self._num_classes = num_classes
            if example is not None:
                self.wrap(example)

    def wrap(self, example: Tensor) -> CooperativeModel:
        """Make a `CooperativeModel` of the model."""
        made = CooperativeModel(self.outer, num_classes=self._num_classes, example=example.to(self.device))
        self.outer = self.inner = made.to(self.device)
        return made

    def built(self, verb: str) -> CooperativeModel:
        """Return the `CooperativeModel`.

        Raises:
            RuntimeError: There is none yet; the message names what was to be done with it.
        """
        if self.inner is None:
            raise RuntimeError(
                f"CooperativeTrainer.{verb} needs the wrapped model, which fit makes from its first batch. "
                "Pass example=, a batch of images, to the trainer, or call fit first."
            )
        return self.inner

    def first_images(self, loader: Iterable[Any]) -> Tensor:
        """Return the images of a loader's first batch, and leave the random streams alone.

        Raises:
            ValueError: It has none, or could not give the batch again.
        """
        if isinstance(loader, Iterator) or _is_read_once(loader):
            raise ValueError("fit can't size the heads from a generator without losing its first batch. Pass example=.")
        with preserved_random_streams(self.device, loader, self._batch):
            for batch in loader:
                images, labels = self._to_pair(batch)
                check_batch(images, labels, self._num_classes, ignore_index=-100)
                return images
        raise ValueError("fit needs a loader that yields at least one batch; got an empty one.")

    def checked(self, drawn: Any, guard: FiniteGuard) -> Batch:
        """Check a batch as the loader yields it; one that is not finite is said to be lost."""
        model, (images, labels) = self.built("fit"), self._to_pair(drawn)
        lost = guard.lost(images, labels)
        if not lost:
            labels = check_batch(images, labels, model.num_classes, model.ignore_index, regions=model.regions)
        return Batch(images, labels, lost)


def _is_read_once(loader: Iterable[Any]) -> bool:
    """Tell whether all iterations over a loader are one, so that a batch that is drawn is gone."""
    if isinstance(loader, DataLoader | Sequence):  # the former would start workers
        return False
    return iter(loader) is iter(loader)
