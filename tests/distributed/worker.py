"""One rank of `test_distributed.py`: python worker.py RANK WORLD_SIZE FOLDER writes the gradients of every case."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from latentaug.cooperative import CooperativeModel, cooperative_backward
from latentaug.heads import ShapePrior
from latentaug.networks import FTN


def fully_sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    return torch.distributed.fsdp.fully_shard(model, mesh=mesh)


WRAPPERS = {
    "default": DistributedDataParallel,
    "find_unused_parameters": partial(DistributedDataParallel, find_unused_parameters=True),
    "static_graph": partial(DistributedDataParallel, static_graph=True),
}
if hasattr(torch.distributed.fsdp, "fully_shard"):
    WRAPPERS["fully_shard"] = fully_sharded
CASES = [("unet", wrapper) for wrapper in WRAPPERS] + [("ftn", "default")]
WAYS = ("one backward", "two stages")
STEPS = 2  # static_graph learns in the first what it relies on in the second


class UNet(nn.Module):
    """One skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.top = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        return self.top(torch.cat([stem, self.up(self.down(stem))], 1))


MODELS = {"unet": UNet, "ftn": lambda: FTN(num_classes=3, width=2, depth=2)}


def batch(rank: int) -> tuple[Tensor, Tensor]:
    """Every rank has its own images."""
    generator = torch.Generator().manual_seed(100 + rank)
    images = torch.rand(2, 1, 16, 16, generator=generator).double()
    return images, torch.randint(3, (2, 16, 16), generator=generator)


def cooperative(name: str) -> CooperativeModel:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    prior = ShapePrior(3, width=2, depth=2).double()
    return CooperativeModel(model, num_classes=3, example=batch(0)[0], shape_prior=prior)


def gradients(model: nn.Module, way: str, rank: int, number: int) -> dict[str, Tensor]:
    """Run one step by one backward pass or by two, and return what it left in `.grad`."""
    generator = torch.Generator().manual_seed(10 * rank + number)
    images, labels = batch(rank)
    model.zero_grad()
    if way == "two stages":
        cooperative_backward(model, images, labels, generator=generator)
    else:
        model(images, labels, generator=generator).loss.backward()
    filled = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    return {name: getattr(grad, "full_tensor", grad.clone)() for name, grad in filled.items()}


def main(rank: int, world_size: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    results = {}
    for name, wrapper in CASES:
        for way in WAYS:
            model = WRAPPERS[wrapper](cooperative(name))
            for number in range(STEPS):
                results[name, wrapper, way, number] = gradients(model, way, rank, number)
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
