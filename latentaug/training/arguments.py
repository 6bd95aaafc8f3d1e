"""Checks of what `CooperativeTrainer` is given, where it comes in."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from latentaug.checks import flag, function, module, number, shown, whole
from latentaug.training.callbacks import Callback


def check_options(
    *,
    model: object,
    num_classes: object,
    example: object,
    batch: object,
    step: object,
    device: object,
    accumulate: object,
    clip_norm: object,
    seed: object,
    callbacks: object,
    allocator: object,
    max_skipped: object,
) -> None:
    """See that options are of the right kinds.

    Raises:
        TypeError: One is not.
        ValueError: A number is out of range.
    """
    module("model", model, who="CooperativeTrainer")
    if num_classes is not None:
        whole("num_classes", num_classes)
    if example is not None and not isinstance(example, Tensor):
        raise TypeError(f"example must be a batch of images, a tensor; got {shown(example)}.")
    function("batch", batch)
    function("step", step)
    if step is None:
        raise TypeError("step must be a callable; got None. Leave it out, or pass cooperative_backward.")
    if device is not None:
        check_device(device)
    whole("accumulate", accumulate, of="batches per update")
    if clip_norm is not None:
        number("clip_norm", clip_norm, above=0)
    if seed is not None and whole("seed", seed, least=0) >= 2**63:
        raise ValueError(f"seed must be below 2**63; got {seed}.")
    if callbacks is not None:
        check_callbacks(callbacks)
    flag("allocator", allocator)
    whole("max_skipped", max_skipped, of="batches")


def check_callbacks(callbacks: object) -> None:
    """See that callbacks are some.

    Raises:
        TypeError: They are not, or one is a class or a function.
    """
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be a list of callbacks; got {shown(callbacks)}.")
    for one in callbacks:
        if isinstance(one, type) or not any(hasattr(one, name) for name in vars(Callback) if name.startswith("on_")):
            raise TypeError(f"Each callback must be an instance of latentaug.Callback; got {shown(one)}.")


def check_fit(loader: object, val_loader: object, epochs: object, max_steps: object) -> None:
    """See that there is something to train on, and an end to it.

    Raises:
        TypeError: A loader is none.
        ValueError: A number is no whole one, or below 1; or there is none.
    """
    if epochs is None and max_steps is None:
        raise ValueError("fit needs epochs or max_steps; got neither.")
    check_loader("loader", loader)
    if val_loader is not None:
        check_loader("val_loader", val_loader)
    for name, value in (("epochs", epochs), ("max_steps", max_steps)):
        if value is not None:
            whole(name, value)


def check_monitor(monitor: object, scores: Collection[str]) -> None:
    """See that there is a score of a name.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(monitor, str) or monitor not in scores:
        raise ValueError(f"monitor must be a score of evaluate, one of {', '.join(scores)}; got {monitor!r}.")


def check_loader(name: str, loader: object) -> None:
    """See that batches can be drawn from a loader.

    Raises:
        TypeError: They cannot.
    """
    if isinstance(loader, Tensor | str | dict) or (
        not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__")
    ):
        raise TypeError(f"{name} must yield batches, as a DataLoader or a list of pairs does; got {shown(loader)}.")


def check_device(device: object) -> None:
    """See that a device is one that computes.

    Raises:
        TypeError: It is none.
        ValueError: There is no such device.
    """
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
        raise TypeError(f"device must be a torch.device or its name; got {shown(device)}.")
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=found)
    except Exception as error:  # of several kinds, by device
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that is there, such as 'cpu'; got {device!r}: {reason}") from error


def check_images(images: object) -> None:
    """See that images are a tensor.

    Raises:
        TypeError: They are not.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [B, C, *S]; got {shown(images)}.")
