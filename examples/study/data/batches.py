"""Batches to train and to validate on, the same for every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from study.data.augment import crop, rescale, training_batch
from study.data.frame import Frame

Batch = tuple[Tensor, Tensor]


class TrainingBatches:
    """Training batches without end, cut into epochs, every one of them made from its number and the seed alone.

    So two methods see the same slices, augmented alike, in the same order, and an interrupted run goes on with the
    batch that it would have had. Slices without a label are skipped; passes over the others follow each other without
    a break, each in an order of its own. Epochs, which may be shorter or longer than a pass, are for validating.

    Args:
        frames: Frames to train on, with a margin around `side` if they have one.
        side: Side of the images of a batch.
        batch_size: Slices of a batch, half of them augmented, the other half the same ones as they are.
        length: Batches of an epoch.
        seed: Decides the order of slices and their augmentation.
        epoch: Called to ask which epoch is due, counted from 0.
        augment: Changes the images of a batch further, all of them alike; None doesn't.
        device: Where batches are made.

    Shape:
        a batch: images [batch_size, 1, side, side] and labels [batch_size, side, side].

    Raises:
        ValueError: an odd batch size.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        *,
        side: int,
        batch_size: int,
        length: int,
        seed: int,
        epoch: Callable[[], int],
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size % 2 or batch_size < 2:
            raise ValueError(f"`batch_size` must be even, since half of it is augmented; got {batch_size}.")
        self.images, self.labels = _labelled_slices(frames, device)
        self.side, self.half, self.length = side, batch_size // 2, length
        self.seed, self.epoch, self.augment = seed, epoch, augment

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        """Make the batches of the epoch that is due."""
        first = self.epoch() * self.length
        return map(self.batch, range(first, first + self.length))

    def batch(self, number: int) -> Batch:
        """Make one batch, by its number from the start of training."""
        first = number * self.half
        chosen = torch.tensor([self._slice(place) for place in range(first, first + self.half)])
        slices = chosen.to(self.images.device, non_blocking=True)
        generator = torch.Generator().manual_seed(_mix(self.seed, number, 1))
        images, labels = training_batch(self.images[slices], self.labels[slices], self.side, generator=generator)
        return (images if self.augment is None else self.augment(images, generator)), labels

    def _slice(self, place: int) -> int:
        turn, index = divmod(place, len(self.images))
        return _order(self.seed, turn, len(self.images))[index]


class Timed:
    """A loader whose batches are waited for with a clock in hand.

    The clock is the host's. A step on a GPU goes on after the host has gone to the next batch, so there the share is
    an upper bound of what the GPU waits.

    Attributes:
        waited: Seconds spent waiting for batches.
        total: Seconds spent iterating, what was done with the batches included.
    """

    def __init__(self, loader: TrainingBatches) -> None:
        self.loader = loader
        self.waited = self.total = 0.0

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Make the batches of the epoch that is due."""
        started = asked = time.perf_counter()
        try:
            for batch in self.loader:
                self.waited += time.perf_counter() - asked
                yield batch
                asked = time.perf_counter()
        finally:
            self.total += time.perf_counter() - started

    @property
    def share(self) -> float | None:
        """Part of the time that was spent waiting, to four places; None before the end of an epoch."""
        return round(self.waited / self.total, 4) if self.total else None


def iterations_per_pass(frames: Sequence[Frame], batch_size: int) -> int:
    """Count the batches that one pass over the labelled slices takes, the last of them filled up from the next pass."""
    slices = sum(int(np.asarray(frame.labels.any((1, 2))).sum()) for frame in frames)
    return -(-slices // (batch_size // 2))


def validation_batches(frames: Sequence[Frame], side: int, device: torch.device | str = "cpu") -> list[Batch]:
    """Return one batch for each volume: the central `side`² of every slice, scaled to 0..1."""
    volumes = [_tensors(frame, slice(None), device) for frame in frames]
    return [(rescale(crop(images, side)), crop(labels, side)) for images, labels in volumes]


def middle_slices(volumes: Sequence[Batch]) -> Batch:
    """Return one batch of the middle slice of each volume."""
    slices = [(images[[len(images) // 2]], labels[[len(labels) // 2]]) for images, labels in volumes]
    images, labels = zip(*slices, strict=True)
    return torch.cat(images), torch.cat(labels)


def _labelled_slices(frames: Sequence[Frame], device: torch.device | str) -> Batch:
    parts = [_tensors(frame, np.asarray(frame.labels.any((1, 2))), device) for frame in frames]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _tensors(frame: Frame, chosen: slice | np.ndarray, device: torch.device | str) -> Batch:
    images = torch.as_tensor(frame.image[chosen], device=device)[:, None]
    return rescale(images), torch.as_tensor(frame.labels[chosen], device=device).long()


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, slices: int) -> list[int]:
    generator = torch.Generator().manual_seed(_mix(seed, turn, 0))
    order: list[int] = torch.randperm(slices, generator=generator).tolist()
    return order


def _mix(seed: int, number: int, purpose: int) -> int:
    return int(np.random.SeedSequence((seed, number, purpose)).generate_state(1, np.uint64)[0] >> 1)
