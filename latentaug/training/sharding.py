"""Weights that are spread over ranks, by FSDP2 or as distributed tensors: whole in a file, in parts in a model.

A checkpoint holds whole tensors, whoever wrote it. So any number of ranks can go on from it, sharded or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentaug import ranks
from latentaug.tracing.keeping import is_distributed, is_flattened, scatter
from latentaug.training.plain import like


def check_sharding(model: nn.Module) -> None:
    """Refuse a model whose parts can't be told from a whole.

    Raises:
        ValueError: FSDP's first version shards it, whose parameters are flat pieces of several.
    """
    if any(map(is_flattened, model.modules())):
        raise ValueError(
            "CooperativeTrainer can't save and resume what FullyShardedDataParallel shards: its parameters are pieces "
            "without a shape. Use torch.distributed.fsdp.fully_shard(coop), its successor, or DistributedDataParallel; "
            "or a loop of your own with cooperative_backward."
        )


def take_weights_from_first(model: nn.Module) -> None:
    """Let a model have the weights and buffers of rank 0, but for what is spread over ranks."""
    scatter(model)
    whole_ones = [one for one in (*model.parameters(), *model.buffers()) if not is_distributed(one)]
    ranks.take_from_first("weights to begin with", whole_ones)


def whole(value: Any) -> Any:
    """Return a state with whole tensors in the place of distributed ones, to be called on all ranks.

    Rank 0 has them, on the CPU; the others have something empty in their place, as they write nothing.

    Example:
        >>> whole({"weight": torch.ones(2), "names": ["a"]})
        {'weight': tensor([1., 1.]), 'names': ['a']}
    """
    if isinstance(value, Tensor) and is_distributed(value):
        gathered: Any = value.detach()
        full: Tensor = gathered.full_tensor()
        return full.cpu() if ranks.rank() == 0 else torch.empty(0)
    if isinstance(value, dict):
        return like(value, {key: whole(one) for key, one in value.items()})
    return type(value)(whole(one) for one in value) if type(value) in (list, tuple) else value


def load_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Load whole weights, or such as the model has, into a model; to be called on all ranks."""
    own = model.state_dict()
    model.load_state_dict({name: part_of(value, own[name]) for name, value in weights.items()})


def optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer with its parameters' parts in the place of whole tensors."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(map(is_distributed, parameters)):
        return dict(state)
    names = [name for group in state["param_groups"] for name in group["params"]]
    parts = {
        name: {key: part_of(value, parameter) for key, value in state["state"][name].items()}
        for name, parameter in zip(names, parameters, strict=True)
        if name in state["state"]
    }
    return {**state, "state": parts}


def part_of(value: Any, parameter: Any) -> Any:
    """Return this rank's part of a whole tensor, where it is one of a distributed tensor; else what it is."""
    if not (isinstance(value, Tensor) and isinstance(parameter, Tensor) and is_distributed(parameter)):
        return value
    if is_distributed(value) or value.shape != parameter.shape:
        return value
    try:
        from torch.distributed.tensor import distribute_tensor
    except ImportError:  # before PyTorch 2.5
        from torch.distributed._tensor import distribute_tensor  # type: ignore[attr-defined]
    given: Any = parameter
    return distribute_tensor(value.to(parameter.device), given.device_mesh, given.placements)
