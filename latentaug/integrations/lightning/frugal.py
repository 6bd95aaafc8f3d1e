"""Steps of manual optimisation: what a Trainer must leave to them, and how DDP takes part."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from torch import Tensor, distributed

from latentaug import ranks


def without_reducing(trainer: Trainer) -> AbstractContextManager[Any]:
    """Leave out DDP's averaging in the parts of a step: gradients are averaged once all are there."""
    strategy = trainer.strategy
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()


def check_frugal(trainer: Trainer) -> None:
    """Refuse settings of a Trainer that a frugal step has no place for.

    Raises:
        ValueError: There is one.
    """
    count, norm, strategy = trainer.accumulate_grad_batches, trainer.gradient_clip_val, trainer.strategy
    of_module = "CooperativeModule(frugal=True) is optimised by itself, and so"
    if count != 1:
        raise ValueError(
            f"{of_module} accumulates itself. Pass it accumulate={count} in place of "
            f"Trainer(accumulate_grad_batches={count}), or frugal=False."
        )
    if norm:
        raise ValueError(
            f"{of_module} clips itself. Pass it clip_norm={norm} in place of Trainer(gradient_clip_val={norm}), or "
            "frugal=False."
        )
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise ValueError(
            f"CooperativeModule(frugal=True) trains on one device or with DDP; got {type(strategy).__name__}. Pass "
            "frugal=False."
        )
    if any(isinstance(one, StochasticWeightAveraging) for one in getattr(trainer, "callbacks", ())):
        raise ValueError(
            f"{of_module} steps in the last epoch of StochasticWeightAveraging too, in which nothing is to be trained. "
            "Pass frugal=False."
        )
    if getattr(strategy, "_ddp_kwargs", {}).get("static_graph"):
        raise ValueError(
            "CooperativeModule(frugal=True) takes several backward passes a step, which DDP with static_graph=True "
            "does not. Leave static_graph out, or pass frugal=False."
        )


def over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """Return the mean over all ranks, which the host does not wait for as it does in `self.log(sync_dist=True)`."""
    if trainer.world_size == 1 or not ranks.several():
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / ranks.count()


def watched(trainer: Trainer, name: str | None) -> Tensor:
    """Return the metric that a scheduler watches.

    Raises:
        ValueError: It was not named, or not logged.
    """
    if name not in trainer.callback_metrics:
        logged = ", ".join(sorted(trainer.callback_metrics))
        raise ValueError(
            f'ReduceLROnPlateau needs a metric that is logged; got monitor={name!r}. Return {{"scheduler": ..., '
            f'"monitor": ...}} with one of {logged}.'
        )
    return trainer.callback_metrics[name]
