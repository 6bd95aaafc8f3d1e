"""What a loader yields, checked before it reaches a model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from latentaug import ranks
from latentaug.cooperative.labels import between_classes, of_size, whole_numbers
from latentaug.tracing.tree import tensors_in

T = TypeVar("T")


def digest_of(batch: Any) -> str:
    """Return what tells a batch from others: a digest of the tensors in it.

    Example:
        >>> one = {"image": torch.zeros(2, 1), "name": "a"}
        >>> digest_of(one) == digest_of([torch.zeros(2, 1)]), digest_of(one) == digest_of([torch.ones(2, 1)])
        (True, False)
    """
    found = hashlib.sha256()
    for _, tensor in tensors_in(batch):
        if tensor.layout == torch.strided and not tensor.is_quantized:
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def as_pair(batch: Any, who: str = "CooperativeTrainer") -> tuple[Tensor, Tensor]:
    """Return a batch that is a pair of tensors, or say what would make it one.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    raise TypeError(
        f"{who} needs a loader that yields (images, labels), two tensors; got {described_batch(batch)}. "
        "Pass batch=, a callable that makes the pair: batch=lambda batch: (batch['image'], batch['label'])."
    )


def made_by(
    batch: Callable[[Any], Any] | None, who: str = "CooperativeTrainer"
) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """Return what makes a pair of tensors of what a loader yields: `batch`, checked, or `as_pair`.

    Example:
        >>> made_by(lambda batch: [batch["image"], batch["label"]])({"image": torch.ones(1), "label": torch.ones(2)})
        (tensor([1.]), tensor([1., 1.]))
    """

    def pair(drawn: Any) -> tuple[Tensor, Tensor]:
        if batch is None:
            return as_pair(drawn, who)
        made = batch(drawn)
        if isinstance(made, list | tuple) and len(made) == 2 and all(isinstance(part, Tensor) for part in made):
            return made[0], made[1]
        raise TypeError(f"batch must return (images, labels), two tensors; got {described_batch(made)}.")

    return pair


def check_batch(
    images: Tensor, labels: Tensor, num_classes: int, ignore_index: int, *, regions: bool = False
) -> Tensor:
    """Return the labels, rounded to whole numbers, or say what is wrong with the batch.

    They keep their shape, and are floating point or int64 as `whole_numbers` says. Their values are checked on the CPU
    only: elsewhere it would wait for the device.

    Args:
        images: Floating-point images.
        labels: Their labels, of any type that holds whole numbers.
        num_classes: 1 for one logit, with labels 0 and 1.
        ignore_index: Label of pixels that don't count.
        regions: Whether labels are 0 and 1 in a channel for each of `num_classes` regions.

    Shape:
        images: [B, C, *S].   labels: [B, *S] or [B, 1, *S]; of regions [B, num_classes, *S].   output: as the labels.

    Raises:
        TypeError: The images aren't floating point, or the labels are complex.
        ValueError: The shapes don't fit each other, or a label is out of range.

    Example:
        >>> check_batch(torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4).bool(), num_classes=1, ignore_index=-100).shape
        torch.Size([2, 1, 4, 4])
    """
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point; got {images.dtype}. Scale them, for example images / 255.")
    if labels.is_complex():
        raise TypeError(f"labels must be class indices; got {labels.dtype}. Pass labels.real.long().")
    if images.ndim < 3 or not of_size(labels, len(images), images.shape[2:], num_classes if regions else None):
        expected = (*images.shape[:1], *[num_classes] * regions, *images.shape[2:])
        raise ValueError(
            f"labels must be {expected} for images of shape {tuple(images.shape)}; got {tuple(labels.shape)}. "
            f"Labels are {'0 and 1 per region' if regions else 'class indices, without a channel per class'}."
        )
    given, labels = labels, whole_numbers(labels)
    if labels.device.type == "cpu":
        broken = between_classes(given)
        if broken.any():
            fraction = given[broken][0].item()
            raise ValueError(f"labels must be whole numbers, class indices; got {fraction:g}. Round or threshold them.")
        highest = 1 if regions else max(num_classes - 1, 1)
        counted = labels.where(labels != ignore_index, 0)
        if counted.numel() and (counted.min() < 0 or counted.max() > highest):
            wrong = sorted({int(label) for label in counted[(counted < 0) | (counted > highest)].tolist()})
            raise ValueError(
                f"labels must be in 0 … {highest} or ignore_index={ignore_index}; got {wrong[:5]}. "
                "Map them to class indices, or raise num_classes."
            )
    return labels


def grouped(batches: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last may be shorter.

    Example:
        >>> list(grouped(iter("abcde"), 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    while group := list(islice(batches, size)):
        yield group


def length_of(loader: Iterable[Any]) -> int | None:
    """Return how many batches a loader says it has; None where it doesn't say."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader of an IterableDataset
        return None


def agreed_length(loader: Iterable[Any]) -> int | None:
    """Return how many batches the rank with the fewest has; None where one doesn't say.

    Example:
        >>> agreed_length([1, 2, 3])
        3
    """
    lengths = ranks.gathered("batches of an epoch", length_of(loader))
    known = [length for length in lengths if length is not None]
    return min(known) if len(known) == len(lengths) else None


def planned_steps(length: int | None, accumulate: int, epochs: int | None, max_steps: int | None) -> int | None:
    """Return how many updates there will have been in all, where that is known.

    Example:
        >>> planned_steps(5, accumulate=2, epochs=10, max_steps=None)
        30
    """
    if length is None or epochs is None:
        return max_steps
    steps = epochs * math.ceil(length / accumulate)
    return steps if max_steps is None else min(steps, max_steps)


def described_batch(batch: Any) -> str:
    """Say what a loader has yielded.

    Example:
        >>> described_batch({"image": 1, "mask": 2})
        "a dict with keys ['image', 'mask']"
    """
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with keys {list(batch)}"
    if isinstance(batch, list | tuple):
        return f"a {type(batch).__name__} of {len(batch)}: {', '.join(type(part).__name__ for part in batch)}"
    return f"a {type(batch).__name__}" + (f" of shape {tuple(batch.shape)}" if isinstance(batch, torch.Tensor) else "")
