"""One rank of `test_ranks.py`: python together.py RANK WORLD_SIZE FOLDER trains nnU-Net's network, on the CPU.

nnU-Net knows ranks with a GPU each. Here the trainer is made before the processes know of each other, and its wrapper
is PyTorch's without the GPU that nnU-Net names. A world of one trains on the batches of both, and averages itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from latentaug import cooperative_backward

RANKS, STEPS, CLIP = 2, 2, 12
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 4,
        "features_per_stage": [4, 8, 16, 16],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 4,
        "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
        "n_conv_per_stage": [1] * 4,
        "n_conv_per_stage_decoder": [1] * 3,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"affine": True},
        "nonlin": "torch.nn.LeakyReLU",
    },
    "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
}


def made(folder: Path, rank: int, batch_dice: bool) -> Any:
    """Return nnU-Net's trainer with a replay in every second step, of a network that is the same on all ranks."""
    os.environ |= {f"nnUNet_{name}": str(folder / f"{name}{rank}") for name in ("raw", "preprocessed", "results")}
    (folder / f"preprocessed{rank}" / "Dataset001_Balls" / "2d").mkdir(parents=True, exist_ok=True)
    (folder / f"preprocessed{rank}" / "Dataset001_Balls" / "2d" / "case.b2nd").touch()
    from latentaug.integrations.nnunet.trainers.latentaug_trainers import nnUNetTrainerCooperative

    configuration = {"batch_size": 4, "patch_size": [32, 32], "batch_dice": batch_dice, "data_identifier": "2d"}
    plans = {"dataset_name": "Dataset001_Balls", "plans_name": "nnUNetPlans", "continue_training": False}
    plans["configurations"] = {"2d": {**configuration, "architecture": ARCHITECTURE}}
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}
    trainer = nnUNetTrainerCooperative(plans, "2d", 0, about, torch.device("cpu"))
    trainer.every = 2
    return trainer


def given(rank: int, step: int) -> dict[str, Any]:
    """What a rank is given at a step; its random stream is set as well."""
    generator = torch.Generator().manual_seed(10 * rank + step)
    images = torch.randn(2, 1, 32, 32, generator=generator) * (1 + rank)
    labels = (torch.rand(2, 1, 32, 32, generator=generator) < 0.3 + 0.3 * rank).float()
    torch.manual_seed(100 * rank + step)
    return {"data": images, "target": [labels, labels[..., ::2, ::2], labels[..., ::4, ::4]]}


def trained(rank: int, folder: Path, batch_dice: bool) -> dict[str, Any]:
    """Train one of several ranks by nnU-Net's own step; return its weights and losses."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    trainer = made(folder, rank, batch_dice)
    store = f"file://{folder}/store{int(batch_dice)}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    trainer.is_ddp, trainer.local_rank = True, rank
    torch.manual_seed(rank)  # ranks begin with other weights; the wrapper takes those of the first
    trainer.initialize()
    trainer.network.train()
    losses = [float(trainer.train_step(given(rank, step))["loss"]) for step in range(STEPS)]
    distributed.destroy_process_group()
    return {"weights": weights_of(trainer.bare), "losses": losses, "wrapper": type(trainer.network).__name__}


def trained_alone(folder: Path) -> dict[str, Any]:
    """Train one process on the batches of all ranks, by the mean of their gradients."""
    trainer = made(folder, 0, batch_dice=False)
    torch.manual_seed(0)
    trainer.initialize()
    trainer.is_ddp = True  # the weights that the loss then gives to resolutions
    trainer.loss = trainer._build_loss()
    network, losses = trainer.network.train(), []
    before = weights_of(network)
    for step in range(STEPS):
        trainer.optimizer.zero_grad()
        for rank in range(RANKS):
            batch = given(rank, step)
            if (step + 1) % trainer.every:
                loss = trainer.loss(network(batch["data"]), batch["target"])
                (loss / RANKS).backward()
            else:
                output = cooperative_backward(trainer._model(batch["data"]), *batch.values(), scale=1 / RANKS)
                loss = output.losses["segmentation"]
                assert "hard_code_segmentation" in output.losses
            losses.append(float(loss))
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        trainer.optimizer.step()
    return {"before": before, "weights": weights_of(network), "losses": losses}


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


if __name__ == "__main__":
    rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    if count == 1:
        found = trained_alone(folder)
    else:
        found = {f"batch_dice={batch_dice}": trained(rank, folder, batch_dice) for batch_dice in (False, True)}
    torch.save(found, folder / f"rank{rank}.pt")
