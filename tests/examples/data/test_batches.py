from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cardiac.data.readers import Frame
from study.data import batches as module
from study.data.augment import rescale
from study.data.batches import Batch, Timed, TrainingBatches, iterations_per_pass, validation_batches


def frame(patient: str, depth: int = 4, side: int = 16, empty: int = 1) -> Frame:
    """A volume whose slices are told apart by the height of a step, with labels in all but the first ones."""
    image = np.zeros((depth, side, side), np.float32)
    labels = np.zeros((depth, side, side), np.uint8)
    for index in range(depth):
        height = (int(patient) * depth + index + 1) / 100
        image[index, :, side // 2 :], image[index, 0, 0] = height, 1
        labels[index, 4:12, 4:12] = index >= empty
    return Frame(patient, "ED", image, labels, (10.0, 1.0, 1.0))


def loader(
    epoch: int = 0,
    *,
    side: int = 12,
    seed: int = 0,
    length: int = 3,
    batch_size: int = 6,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> TrainingBatches:
    return TrainingBatches(
        [frame("0"), frame("1")],
        side=side,
        batch_size=batch_size,
        length=length,
        seed=seed,
        epoch=lambda: epoch,
        augment=augment,
        device=device,
    )


def untouched(batches: Iterable[Batch]) -> list[int]:
    """Which slices the second halves of batches hold, told by the step."""
    return [round(100 * float(image[0, 6, 10])) for images, _ in batches for image in images[len(images) // 2 :]]


def test_a_batch_is_half_augmented_half_as_it_is() -> None:
    images, labels = next(iter(loader()))
    assert images.shape == (6, 1, 12, 12)
    assert labels.shape == (6, 12, 12)
    assert labels.dtype == torch.long
    assert not torch.equal(images[:3], images[3:])


def test_further_augmentation_changes_images_alike_for_every_loader_and_no_labels() -> None:
    def darker(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images * torch.rand(len(images), 1, 1, 1, generator=generator)

    plain, *both = (list(loader(augment=augment)) for augment in (None, darker, darker))
    for (images, labels), (one, of_one), (other, of_other) in zip(plain, *both, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(labels, of_one)
        assert torch.equal(labels, of_other)
        factors = one.amax((1, 2, 3))
        assert len(factors.unique()) == len(images)
        torch.testing.assert_close(one, images * factors.view(-1, 1, 1, 1))


def test_slices_without_a_label_are_skipped_and_every_other_comes_once_a_pass() -> None:
    slices = untouched(loader(side=16, length=4))
    first, second = slices[:6], slices[6:]
    assert sorted(first) == sorted(second) == [2, 3, 4, 6, 7, 8]
    assert first != second


def test_a_pass_is_counted_in_batches() -> None:
    frames = [frame("0"), frame("1")]
    assert [iterations_per_pass(frames, batch_size) for batch_size in (6, 8, 12)] == [2, 2, 1]


def test_two_loaders_give_equal_batches_whatever_is_drawn_in_between() -> None:
    first = list(loader())
    torch.rand(5)
    second = list(loader())
    for (images, labels), (others, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    list(loader())
    assert torch.equal(torch.get_rng_state(), state)


def test_epochs_continue_each_other() -> None:
    long = [images for images, _ in loader(length=6)]
    short = [images for epoch in range(2) for images, _ in loader(epoch, length=3)]
    assert len(loader(length=6)) == len(long) == len(short) == 6
    assert all(torch.equal(one, other) for one, other in zip(long, short, strict=True))


def test_another_seed_gives_another_order() -> None:
    assert not torch.equal(next(iter(loader()))[0], next(iter(loader(seed=1)))[0])


@pytest.mark.parametrize("batch_size", [0, 5])
def test_an_odd_batch_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"must be even.*got {batch_size}"):
        loader(batch_size=batch_size)


def test_a_validation_batch_is_a_volume_with_all_its_slices() -> None:
    ((images, labels),) = validation_batches([frame("1")], 16)
    assert images.shape == (4, 1, 16, 16)
    assert torch.equal(images.amax((1, 2, 3)), torch.ones(4))
    assert labels.shape == (4, 16, 16)
    assert labels.dtype == torch.long
    assert labels[0].max() == 0


def test_a_validation_batch_is_cropped_as_training_batches_are() -> None:
    ((images, labels),) = validation_batches([frame("1")], 8)
    ((whole, all_labels),) = validation_batches([frame("1")], 16)
    assert images.shape == (4, 1, 8, 8)
    assert torch.equal(labels, all_labels[:, 4:12, 4:12])
    assert torch.equal(images, rescale(whole[:, :, 4:12, 4:12]))


# Time


class CopiesTo(TorchDispatchMode):
    """Notes of every copy from the CPU to another device whether the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and "device" in kwargs:
            self.waits.append(not kwargs.get("non_blocking", False))
        if func is torch.ops.aten.index.Tensor:  # copies indices of another device, and waits
            self.waits.append(any(i is not None and i.device != args[0].device for i in args[1]))
        return func(*args, **kwargs)


def test_a_batch_is_made_on_the_device_without_a_wait_for_it() -> None:
    batches = loader(device="meta")
    with CopiesTo() as copies:
        images, labels = batches.batch(0)
    assert images.device.type == labels.device.type == "meta"
    assert len(copies.waits) >= 6
    assert not any(copies.waits)
    with CopiesTo() as copies:  # the detector detects
        batches.images[torch.tensor([0])]
        torch.zeros(1).to("meta")
    assert copies.waits == [True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_a_gpu_never_synchronises() -> None:
    batches = loader(device="cuda")
    batches.batch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        images, labels = batches.batch(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = loader().batch(1)
    torch.testing.assert_close(images.cpu(), on_cpu[0])
    assert (labels.cpu() == on_cpu[1]).float().mean() > 0.99


def test_the_share_of_waiting_is_that_of_the_time_between_asking_and_getting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[int]:
            for number in range(3):
                now[0] += 1
                yield number

    timed = Timed(Slow())
    assert len(timed) == 3
    assert timed.share is None
    for _ in range(2):
        for _ in timed:
            now[0] += 4
    assert (timed.waited, timed.total, timed.share) == (6, 30, 0.2)


def test_the_step_after_which_an_epoch_is_cut_short_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    timed = Timed(loader())
    batches = iter(timed)
    next(batches)
    batches.close()
    assert (timed.waited, timed.total) == (1, 2)


def test_timing_changes_no_batch() -> None:
    for (images, labels), (others, other_labels) in zip(Timed(loader()), loader(), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
