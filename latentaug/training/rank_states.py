"""What each rank has of its own in a checkpoint: its random streams, and its part of the running epoch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentaug import ranks
from latentaug.training.metrics import add_to
from latentaug.training.random_streams import derived_random_state, derived_seed

logger = logging.getLogger(__name__)

_OF_POSITION = ("sums", "counted", "epoch_start", "first_batch")


def parts_of_ranks(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each rank has of its own in a state that is to be saved, by rank; nothing where there is one."""
    if not ranks.several():
        return []
    position = state["position"]
    own = {"generator": state["generator"], "random": state["random"]} | {key: position[key] for key in _OF_POSITION}
    return ranks.gathered("random streams to save", _on_cpu(own))


def as_of_this_rank(state: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a state that was loaded with what this rank has of its own in it.

    Where as many ranks wrote it as there are now, that is what each had. Else ranks that were there go on with their
    streams, further ones begin with streams made of those, and rank 0 has the losses of the running epoch so far.

    Args:
        state: What was read.
        device: Whose random streams are meant.
    """
    number, parts = ranks.rank(), _parts(state)
    own = parts[number % len(parts)]
    position = {**state["position"], **{key: own[key] for key in _OF_POSITION if key in own}}
    if len(parts) != ranks.count():
        position |= {"elsewhere": True, "sums": {}, "counted": 0}
        for part in parts if number == 0 else []:
            add_to(position["sums"], part["sums"])
            position["counted"] = position["counted"] + part.get("counted", position["batches"])
        if number >= len(parts):
            own = own | {"random": derived_random_state(own["random"], device, number)}
            if own["generator"] is not None:
                new = torch.Generator().manual_seed(derived_seed(own["generator"], number))
                own["generator"] = new.get_state()
    return {**state, "generator": own["generator"], "random": own["random"], "position": position}


def tell_of_ranks(path: Path, state: Mapping[str, Any]) -> None:
    """Say what becomes of random streams where another number of ranks goes on."""
    then, now = len(_parts(state)), ranks.count()
    if then == now or ranks.rank() != 0:
        return
    streams = (
        f"the random streams of {_range(now, then)} end here"
        if now < then
        else f"{_range(then, now)} begin{'s' * (now - then == 1)} with random streams made of those of the file"
    )
    logger.warning(
        "%s was written by %d rank%s, and %d go%s on from it: %s; the others go on with theirs. An epoch that was "
        "begun goes on at the same fraction of it, with batches that need not be those that were left.",
        path,
        then,
        "s" * (then > 1),
        now,
        "es" * (now == 1),
        streams,
    )


def _parts(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each rank had; of a checkpoint of one rank, or of a version that kept that of rank 0, one part."""
    position = state["position"]
    alone = {"generator": state["generator"], "random": state["random"], **position}
    parts: list[dict[str, Any]] = state.get("ranks") or [alone]
    return parts


def _range(first: int, end: int) -> str:
    return f"rank {first}" if end - first == 1 else f"ranks {first} to {end - 1}"


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    return {key: _on_cpu(one) for key, one in value.items()} if isinstance(value, dict) else value
