"""Resuming as a whole or not at all: a checkpoint is checked before any is loaded, which is undone if it fails."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentaug import ranks
from latentaug.training.best import Best
from latentaug.training.checkpoint import Position, weights_for
from latentaug.training.optimization import Optimization
from latentaug.training.random_streams import check_random_state
from latentaug.training.rank_states import as_of_this_rank
from latentaug.training.settings import Wish, overrides

logger = logging.getLogger(__name__)


class Contents(NamedTuple):
    """What a checkpoint holds, checked."""

    weights: dict[str, Any]
    position: Position
    best: Best | None
    run: str
    generator: Any
    random: dict[str, Any]


def checked(
    state: Mapping[str, Any], path: Path, model: nn.Module, settings: Mapping[str, Any], device: torch.device
) -> Contents:
    """See that a checkpoint is one of a trainer like this.

    Args:
        state: What was read.
        path: Where from.
        model: The model that it is to be loaded into.
        settings: What must be alike.
        device: Where the model is.

    Raises:
        ValueError: It isn't; the message names the file.
    """
    with refusing(path):
        state = as_of_this_rank(state, device)
        weights = weights_for(model, state["model"], str(path))
        for name, own in settings.items():
            if name == "parameters":
                _see_that_they_are_the_same(state["settings"].get(name, own), own)
            elif state["settings"].get(name) != own:
                raise ValueError(
                    f"{path} was written with {name} {state['settings'].get(name)!r}; this trainer has {own!r}. "
                    "Build the trainer as it was then."
                )
        position = _checked_position(state["position"], device)
        check_random_state(state["random"], device)
        if position.batches:
            check_random_state(position.epoch_start, device)
        best = None if state["best"] is None else Best(**state["best"])
        if best is not None and not (isinstance(best.epoch, int) and isinstance(best.value, float)):
            raise ValueError(f"{path} names no epoch and no score for the best epoch, but {best[:2]}.")
        return Contents(weights, position, best, str(state.get("run", "")), state["generator"], state["random"])


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever a damaged checkpoint makes fail into an error that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise ValueError(
            f"{path} can't be resumed from, and this trainer is as it was: {type(error).__name__}: {reason}"
        ) from error


@contextmanager
def all_or_nothing(
    path: Path, model: nn.Module, optimization: Optimization, generator: torch.Generator | None
) -> Iterator[None]:
    """Put model, optimizer, schedule and generator back as they were if loading them fails.

    Raises:
        ValueError: It did; the message names the file.
    """
    weights = {name: copy.deepcopy(value) for name, value in model.state_dict().items()}
    state = copy.deepcopy(optimization.state_dict())
    drawn = None if generator is None else generator.get_state()
    with refusing(path):
        try:
            with ranks.failing_together("a checkpoint to load"):
                yield
        except Exception:
            model.load_state_dict(weights)
            optimization.restore(state)
            if generator is not None and drawn is not None:
                generator.set_state(drawn)
            raise


def tell_of_resume(
    path: Path, position: Position, wishes: Collection[Wish], override: Collection[str], older: bool
) -> None:
    """Say what is taken from the checkpoint and what from this call; whose wish counts where they differ."""
    logger.info(
        "Resumed %s at epoch %d, update %d. From the file: weights, optimizer, schedule, random streams, history and "
        "best epoch. From this call: the loss and the weights of losses, hard examples, transforms, accumulate, "
        "clip_norm, ema, max_skipped, loaders and callbacks.",
        path,
        position.epoch,
        position.step,
    )
    if older:
        logger.warning(
            "%s is of an older version, which did not note what optimizer and scheduler were asked for: theirs are "
            "those of the file, whatever this call asks for, but for what override= names.",
            path,
        )
    ignored = [str(wish) for wish in wishes if not overrides(override, wish.name.partition(" ")[0])]
    if ignored:
        logger.warning(
            "%s: this call asks for other settings than the file has, and those of the file are taken: %s. To take "
            "this call's, pass resume(path, override=[...]) with 'scheduler', 'optimizer' or one of its options.",
            path,
            ", ".join(ignored),
        )
    taken = [str(wish) for wish in wishes if overrides(override, wish.name.partition(" ")[0])]
    if taken:
        logger.info("%s: taken from this call: %s.", path, ", ".join(taken))


def _see_that_they_are_the_same(then: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> None:
    """See that an optimizer's state, which goes by numbers, is of the same parameters; older checkpoints don't say."""
    for earlier, own in zip(chain(*then), chain(*now), strict=True):
        if earlier != own:
            raise ValueError(
                f"the optimizer had {earlier!r} where it has {own!r} in this trainer, and its state is of the former. "
                "Freeze the same parameters, and hand them to the optimizer in the same groups and order."
            )


def tell_of_seed(path: Path, then: int, now: int) -> None:
    """Say that a seed has no effect on random streams that go on."""
    if then != now and ranks.rank() == 0:
        logger.warning(
            "%s: the step goes on with the random stream of the file, of seed %d; this call's seed=%d has no effect.",
            path,
            then,
            now,
        )


def _checked_position(state: Any, device: torch.device) -> Position:
    position = Position(**{"counted": state["batches"], **state})  # older checkpoints count all
    counts = (position.epoch, position.step, position.batches)
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError(f"epoch, step and batches must be whole numbers; got {counts}.")
    if not (isinstance(position.seconds, int | float) and isinstance(position.epoch_start, dict)):
        raise ValueError("the time that the epoch took, or how it began, is no such thing.")
    if not (isinstance(position.history, list) and all(isinstance(row, dict) for row in position.history)):
        raise ValueError("the history is no list of rows.")
    position.sums = {name: value.to(device) for name, value in position.sums.items()}
    if isinstance(position.counted, Tensor):
        position.counted = position.counted.to(device)
    return position
