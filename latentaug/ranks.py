"""Processes that train one model together, by `torch.distributed`, and what they tell each other on the CPU.

Each exchange has a name. Ranks that come to different ones are told so; otherwise one would wait for the other forever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

T = TypeVar("T")

_LONGEST = 32
"""Bytes of the name of an exchange."""

_NUMBERS = 4

_group: tuple[Any, Any] | None = None
"""The group of all ranks, and the one in which they exchange tensors on the CPU."""


class RanksDifferError(RuntimeError):
    """Ranks that have to do the same do different things, or one of them failed."""


def rank() -> int:
    """Return the number of this process among those that train together; 0 where it is alone.

    Example:
        >>> rank(), count(), several()
        (0, 1, False)
    """
    return distributed.get_rank() if _is_up() else 0


def count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if _is_up() else 1


def several() -> bool:
    """Tell whether there are others to agree with."""
    return count() > 1


def largest(what: str, *numbers: int) -> list[int]:
    """Return the largest of each number over all ranks.

    Args:
        what: A name of this exchange, the same on all ranks.
        numbers: Up to four.

    Raises:
        RanksDifferError: Other ranks are at another exchange.

    Example:
        >>> largest("as an example", 3, 1)
        [3, 1]
    """
    return [max(column) for column in zip(*_exchanged(what, numbers), strict=True)]


def gathered(what: str, value: T) -> list[T]:
    """Return what each rank has, by rank.

    Args:
        what: A name of this exchange, the same on all ranks.
        value: Anything that can be pickled.

    Raises:
        RanksDifferError: Other ranks are at another exchange.

    Example:
        >>> gathered("as an example", {"loss": 2.0})
        [{'loss': 2.0}]
    """
    _exchanged(what, ())
    if not several():
        return [value]
    values = cast(list[T], [None] * count())
    distributed.all_gather_object(values, value, group=_on_cpu())
    return values


def anywhere(what: str, flags: Sequence[bool]) -> list[bool]:
    """Return for each flag whether it is set on any rank.

    Args:
        what: A name of this exchange, the same on all ranks.
        flags: As many as on the other ranks.

    Raises:
        RanksDifferError: Other ranks are at another exchange, or have another number of flags.

    Example:
        >>> anywhere("as an example", [True, False])
        [True, False]
    """
    lengths = {length for (length,) in _exchanged(what, (len(flags),))}
    if len(lengths) > 1:
        raise RanksDifferError(f"All ranks must have as many of {what!r}; got {sorted(lengths)}.")
    if not several() or not flags:
        return [*flags]
    word = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(word, op=distributed.ReduceOp.MAX, group=_on_cpu())
    return [bool(flag) for flag in word.tolist()]


@contextmanager
def failing_together(what: str) -> Iterator[None]:
    """Run a block that each rank must get through; where one fails, all do.

    Args:
        what: A name of what is done, the same on all ranks. The block has no exchanges that a failure would skip.

    Raises:
        RanksDifferError: Another rank failed; its own error is raised there.
    """
    try:
        yield
    except Exception as error:
        gathered(what, f"{type(error).__name__}: {error}")
        raise
    for number, failure in enumerate(gathered(what, "")):
        if failure:
            raise RanksDifferError(f"Rank {number} failed ({what}): {failure}")


@torch.no_grad()
def take_from_first(what: str, tensors: Iterable[Tensor]) -> None:
    """Let tensors have the values that they have on rank 0, in place.

    Args:
        what: A name of this exchange, the same on all ranks.
        tensors: As many as on the other ranks, of the same shapes.

    Raises:
        RanksDifferError: Other ranks are at another exchange.
    """
    _exchanged(what, ())
    if not several():
        return
    for tensor in tensors:
        sent = tensor.detach().contiguous()
        distributed.broadcast(sent, 0, group=_on_cpu() if tensor.device.type == "cpu" else None)
        if sent.data_ptr() != tensor.data_ptr():
            tensor.copy_(sent)


def _exchanged(what: str, numbers: Sequence[int]) -> list[list[int]]:
    """Return the numbers of all ranks."""
    if not several():
        return [[*numbers]]
    name = what.encode()
    if len(name) > _LONGEST or len(numbers) > _NUMBERS:
        raise ValueError(f"An exchange has a name of {_LONGEST} bytes and {_NUMBERS} numbers at most; got {what!r}.")
    padded = torch.tensor([*numbers, *[0] * (_NUMBERS - len(numbers))])
    word = torch.cat([torch.tensor([*name.ljust(_LONGEST)], dtype=torch.uint8), padded.view(torch.uint8)])
    words = [torch.empty_like(word) for _ in range(count())]
    distributed.all_gather(words, word, group=_on_cpu())
    names = [bytes(one[:_LONGEST].tolist()).decode().rstrip() for one in words]
    if len({*names}) > 1:
        came = ", ".join(f"rank {number} to {one!r}" for number, one in enumerate(names))
        raise RanksDifferError(
            f"All ranks must do the same in the same order; {came}. Call the same methods on every rank, also those "
            "that save or evaluate."
        )
    return [one[_LONGEST:].view(torch.int64)[: len(numbers)].tolist() for one in words]


def _is_up() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _on_cpu() -> Any:
    """Return the group of all ranks for tensors on the CPU; it is made where the one that is there takes none."""
    global _group
    everyone = distributed.group.WORLD
    if _group is None or _group[0] is not everyone:
        takes = "cpu:" in distributed.get_backend_config()
        _group = everyone, everyone if takes else distributed.new_group(backend="gloo")
    return _group[1]
