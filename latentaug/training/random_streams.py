"""The random streams that a training draws from, as plain data: the global ones, and those of its parts."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentaug.tracing.outside import Generator as Stream
from latentaug.tracing.outside import generators_outside, has_state, is_of_the_system, read_by
from latentaug.tracing.random_state import RandomState

logger = logging.getLogger(__name__)

_FIRST = (
    "generator",
    "sampler",
    "batch_sampler",
    "base_sampler",
    "dataset",
    "loader",
    "base_loader",
    "dataloader",
    "base_dataloader",
)
"""Attributes that are looked into first, in the order of older checkpoints."""
_FEW, _MANY = 256, 10_000
"""Longer lists are taken for data and not looked into; nor is more than so many objects."""


def random_state(device: torch.device, *parts: object) -> dict[str, Any]:
    """Return the state of the global random streams, and of those that parts hold, as tensors and plain data.

    Args:
        device: Whose stream to take beside those of the CPU, Python and NumPy.
        parts: Anything that draws, such as a loader: the streams that `streams_of` finds.

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
        "loader": [_state_of(stream) for stream in streams_of(*parts)],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device, *parts: object) -> None:
    """Set the streams back to what `random_state` returned."""
    name, keys, *rest = state["numpy"]
    numpy_state = (name, keys.numpy().astype(np.uint32), *rest)
    RandomState(state["cpu"], device, state["accelerator"], state["python"], numpy_state).restore()
    streams, states = streams_of(*parts), state["loader"]
    if len(streams) != len(states):
        logger.warning(
            "The loader, batch=, step= and the model hold %d random generators, and the checkpoint has the states of "
            "%d: batches, or what is drawn for them, may be others than those of an uninterrupted run. Pass what it "
            "was written with.",
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
    with preserved_random_streams(device):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the global stream is what is seeded
        return {**random_state(device), "loader": state["loader"]}


def derived_seed(state: Tensor, number: int) -> int:
    """Return a seed made of the state of a generator and a number."""
    content = state.cpu().numpy().tobytes() + number.to_bytes(8, "little")
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "little")


def check_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """See that a state can be restored, and leave the streams as they are."""
    if not isinstance(state["loader"], list):
        raise ValueError(f"the states of a loader's generators are no list, but a {type(state['loader']).__name__}.")
    with preserved_random_streams(device):
        restore_random_state({**state, "loader": []}, device)


@contextmanager
def preserved_random_streams(device: torch.device, *parts: object) -> Iterator[None]:
    """Leave the global random streams, and those that parts hold, as they were found."""
    state = random_state(device, *parts)
    try:
        yield
    finally:
        restore_random_state(state, device, *parts)


def streams_of(*parts: object) -> list[Stream]:
    """Find the streams that parts of a training draw from, beside the global ones.

    It looks into attributes, short lists and mappings, partial functions, methods, closures, and what functions read of
    their modules, however deep: into samplers, data sets and their transforms, and what puts batches together.

    Args:
        parts: Loaders, functions, models, in an order that is always the same.

    Example:
        >>> from torch.utils.data import BatchSampler, DataLoader, RandomSampler
        >>> data, own = range(8), torch.Generator()
        >>> loader = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=own), 4, False))
        >>> streams_of(loader) == [own]
        True
    """
    seen, found = set[int](), list[Stream]()
    for part in parts:
        holders = [part]
        for holder in holders:  # which grows meanwhile
            for value in _held(holder):
                if id(value) in seen or isinstance(value, _ATOMS):
                    continue
                seen.add(id(value))
                found += [value] if has_state(value) and value is not torch.default_generator else []
                holders += [] if isinstance(value, Stream) or len(holders) > _MANY else [value]
    return found


_ATOMS = (str, bytes, bool, int, float, complex, type(None), type, ModuleType, Tensor, np.ndarray)
"""What is not looked into."""


def _held(holder: object) -> Iterator[object]:
    """Yield what an object holds, in an order that is the same for one that is made alike."""
    if isinstance(holder, Mapping | list | tuple | deque):
        if len(holder) <= _FEW:
            yield from holder.values() if isinstance(holder, Mapping) else holder
        return
    if isinstance(holder, partial):
        yield from (holder.func, holder.args, holder.keywords)
    elif is_of_the_system(holder):
        return
    yield getattr(holder, "__self__", None)  # of a method
    yield getattr(holder, "__func__", None)
    for cell in getattr(holder, "__closure__", None) or ():
        with suppress(ValueError):  # an empty one
            yield cell.cell_contents
    own = dict(getattr(holder, "__dict__", {}))
    for name in _FIRST:
        value = own.pop(name, None)
        yield _property(holder, name) if value is None else value
    own.pop("_iterator", None)  # of a loader whose workers live on, which has the same things again
    yield from own.values()
    for kind in type(holder).__mro__:  # such as the stream that MONAI's transforms share until they are seeded
        yield from (value for value in vars(kind).values() if isinstance(value, Stream))
    yield from read_by(holder) if isinstance(holder, FunctionType) else generators_outside(holder)


def _property(holder: object, name: str) -> object:
    """Return a generator or a sampler that an object, such as a wrapped loader, hands out without having it."""
    try:
        return getattr(holder, name, None) if name in ("generator", "sampler") else None
    except Exception:  # of whatever kind properties raise
        return None


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
