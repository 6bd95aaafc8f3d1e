"""The random streams that a training draws from, as plain data: the global ones, and a loader's own."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from latentaug.tracing.random_state import RandomState

logger = logging.getLogger(__name__)

Stream: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random

_HOLDERS = (
    "sampler",
    "batch_sampler",
    "base_sampler",
    "dataset",
    "loader",
    "base_loader",
    "dataloader",
    "base_dataloader",
)
"""Attributes of a loader, and of what stands in them, that may hold a stream."""


def random_state(device: torch.device, loader: object) -> dict[str, Any]:
    """Return the state of the global random streams, and of a loader's own, as tensors and plain data.

    Args:
        device: Whose stream to take beside those of the CPU, Python and NumPy.
        loader: Anything; the streams that a `DataLoader`, its samplers and its data set hold are found.

    Example:
        >>> device, loader = torch.device("cpu"), [1, 2]
        >>> state = random_state(device, loader)
        >>> first = torch.rand(())
        >>> restore_random_state(state, device, loader)
        >>> bool(torch.rand(()) == first)
        True
    """
    state = RandomState.capture(device)
    name, keys, *rest = state.numpy
    return {
        "cpu": state.cpu,
        "accelerator": state.accelerator,
        "python": state.python,
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "loader": [_state_of(stream) for stream in streams_of(loader)],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device, loader: object) -> None:
    """Set the streams back to what `random_state` returned."""
    name, keys, *rest = state["numpy"]
    numpy_state = (name, keys.numpy().astype(np.uint32), *rest)
    RandomState(state["cpu"], device, state["accelerator"], state["python"], numpy_state).restore()
    streams, states = streams_of(loader), state["loader"]
    if len(streams) != len(states):
        logger.warning(
            "The loader holds %d random generators, and the checkpoint has the states of %d: the order of its batches "
            "may be another one than that of an uninterrupted run. Pass the loader that it was written with.",
            len(streams),
            len(states),
        )
    for stream, own in zip(streams, states, strict=False):
        _set_state(stream, own)


def derived_random_state(state: Mapping[str, Any], device: torch.device, number: int) -> dict[str, Any]:
    """Return the state of other streams, made of a state and a number; a loader's own are kept.

    Example:
        >>> device = torch.device("cpu")
        >>> state = random_state(device, ())
        >>> one, other = (derived_random_state(state, device, number) for number in (1, 2))
        >>> torch.equal(one["cpu"], other["cpu"])
        False
    """
    seed = derived_seed(state["cpu"], number)
    with preserved_random_streams(device, ()):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the global stream is what is seeded
        return {**random_state(device, ()), "loader": state["loader"]}


def derived_seed(state: Tensor, number: int) -> int:
    """Return a seed made of the state of a generator and a number."""
    content = state.cpu().numpy().tobytes() + number.to_bytes(8, "little")
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "little")


def check_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """See that a state can be restored, and leave the streams as they are."""
    if not isinstance(state["loader"], list):
        raise ValueError(f"the states of a loader's generators are no list, but a {type(state['loader']).__name__}.")
    with preserved_random_streams(device, ()):
        restore_random_state({**state, "loader": []}, device, ())


@contextmanager
def preserved_random_streams(device: torch.device, loader: object) -> Iterator[None]:
    """Leave the global random streams and the loader's own as they were found."""
    state = random_state(device, loader)
    try:
        yield
    finally:
        restore_random_state(state, device, loader)


def streams_of(loader: object) -> list[Stream]:
    """Find the streams that a loader draws from, beside the global ones: its own, its samplers' and its data set's.

    Example:
        >>> from torch.utils.data import BatchSampler, DataLoader, RandomSampler
        >>> data, own = range(8), torch.Generator()
        >>> loader = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=own), 4, False))
        >>> streams_of(loader) == [own]
        True
    """
    holders, found = [loader], list[Stream]()
    for holder in holders:  # which grows meanwhile
        held = _attributes(holder)
        found += [value for value in held.values() if isinstance(value, Stream) and not _is_in(value, found)]
        nested = [held.get(name) for name in _HOLDERS if name in held]
        nested += [value for value in held.values() if isinstance(value, Sampler)]
        holders += [value for value in nested if value is not None and not _is_in(value, holders)]
    return found


def _attributes(holder: object) -> dict[str, Any]:
    """Return what stands in an object: `generator` first, as older checkpoints have it."""
    own = dict(getattr(holder, "__dict__", {}))
    first = {name: getattr(holder, name, None) for name in ("generator", *_HOLDERS[:1])}
    return {name: value for name, value in {**first, **own}.items() if value is not None}


def _is_in(value: object, others: list[Any]) -> bool:
    return any(value is other for other in others)


def _state_of(stream: Stream) -> Any:
    if isinstance(stream, torch.Generator | np.random.RandomState):
        return stream.get_state()
    return stream.getstate() if isinstance(stream, random.Random) else stream.bit_generator.state


def _set_state(stream: Stream, state: Any) -> None:
    if isinstance(stream, torch.Generator | np.random.RandomState):
        stream.set_state(state)
    elif isinstance(stream, random.Random):
        version, words, rest = state
        stream.setstate((version, tuple(words), rest))
    else:
        stream.bit_generator.state = state
