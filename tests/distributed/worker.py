"""One rank of `test_distributed.py`: python worker.py RANK WORLD_SIZE FOLDER writes the gradients of every case."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from latentaug import CooperativeModel, HardExamples, cooperative_backward
from latentaug.nets.ftn import FTN
from latentaug.nets.heads import ShapePrior
from latentaug.saliency import latent_saliency
from latentaug.tap.latent_tap import LatentTap


def fully_sharded(model: nn.Module, parts: Sequence[str] = ()) -> nn.Module:
    """Shard the parts by themselves, and the rest of the model together."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for part in parts:
        torch.distributed.fsdp.fully_shard(model.get_submodule(part), mesh=mesh)
    return torch.distributed.fsdp.fully_shard(model, mesh=mesh)


WRAPPERS = {
    "default": DistributedDataParallel,
    "find_unused_parameters": partial(DistributedDataParallel, find_unused_parameters=True),
    "static_graph": partial(DistributedDataParallel, static_graph=True),
}
if hasattr(torch.distributed.fsdp, "fully_shard"):
    WRAPPERS["fully_shard"] = fully_sharded
    WRAPPERS["fully_shard, model too"] = partial(fully_sharded, parts=["model"])
    WRAPPERS["fully_shard, parts too"] = partial(fully_sharded, parts=["model.down", "model.up", "shape_prior"])
CASES = [(model, wrapper) for model in ("unet", "fine", "prior alone") for wrapper in WRAPPERS] + [("ftn", "default")]
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


class FineUNet(UNet):
    """A bottleneck at stride 8, and a code at stride 4 that images are decoded from."""

    def __init__(self) -> None:
        super().__init__()
        self.stem.insert(0, nn.Conv2d(1, 1, 4, 4))
        self.top.append(nn.Upsample(scale_factor=4))


MODELS = {
    "unet": UNet,
    "fine": FineUNet,
    "prior alone": UNet,
    "ftn": lambda: FTN(num_classes=3, width=2, depth=2),
}
PAPER = HardExamples(every=1, noise=0.05, separate=False, separate_decoder=False)
OPTIONS: dict[str, dict[str, Any]] = {
    "unet": {"reconstruction": True, "hard": PAPER},
    "fine": {"reconstruction": True, "hard": HardExamples(every=1)},  # heads learn from it without a gradient into it
    "prior alone": {"hard": HardExamples(every=1)},  # of hard examples the prior learns, and the network by its replay
    "ftn": {},
}


def batch(rank: int) -> tuple[Tensor, Tensor]:
    """Every rank has its own images."""
    generator = torch.Generator().manual_seed(100 + rank)
    images = torch.rand(2, 1, 16, 16, generator=generator).double()
    return images, torch.randint(3, (2, 16, 16), generator=generator)


def cooperative(name: str) -> CooperativeModel:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    prior = ShapePrior(3, width=2, depth=2).double()
    return CooperativeModel(model, num_classes=3, example=batch(0)[0], shape_prior=prior, **OPTIONS[name])


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


TAPPED = {
    "nothing else": [],
    "before the code": ["stem"],
    "around the code": ["down"],
    "after the code": ["up", "top"],
    "everywhere": ["stem", "down", "up", "top"],
    "inside": ["stem.0", "down.0", "top.1"],
}


def tapped_gradients(model: nn.Module, detach: bool, number: int, rank: int) -> dict[str, Tensor]:
    """Replay a sharded model from half its code, and return what one backward pass of both outputs left in `.grad`."""
    images, _ = batch(rank + 10 * number)
    model.zero_grad()
    with LatentTap(model, "down") as tap:
        logits = model(images)
        saliency = latent_saliency(logits.square().mean(), tap.code)
        assert saliency.shape == tap.code.shape
        for full in (False, True):
            assert torch.equal(tap.replay(tap.code, full=full), logits)
        code = tap.code.detach() if detach else tap.code
        replayed = tap.replay(code * 0.5, detach=detach)
        (logits.square().sum() + replayed.square().sum()).backward()
    return {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}


def expected_gradients(detach: bool, number: int, rank: int) -> dict[str, Tensor]:
    """Do the same with a plain hook, on one process and an unsharded model."""
    model, (images, _) = unet(), batch(rank + 10 * number)
    model(images).square().sum().backward()
    before = ("stem", "down") if detach else ()
    model.down.register_forward_hook(lambda module, args, code: (code.detach() if detach else code) * 0.5)
    weights = {name: weight for name, weight in model.named_parameters() if not name.startswith(before)}
    gradients = torch.autograd.grad(model(images).square().sum(), list(weights.values()))
    for weight, gradient in zip(weights.values(), gradients, strict=True):
        weight.grad += gradient
    return {name: weight.grad for name, weight in model.named_parameters()}


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet().double()


def main(rank: int, world_size: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    results = {}
    for name, wrapper in CASES:
        for way in WAYS:
            model = WRAPPERS[wrapper](cooperative(name))
            for number in range(STEPS):
                results[name, wrapper, way, number] = gradients(model, way, rank, number)
    if "fully_shard" in WRAPPERS:
        for where, parts in TAPPED.items():
            for detach in (False, True):
                model = fully_sharded(unet(), parts)
                for number in range(STEPS):
                    results[where, detach, number] = tapped_gradients(model, detach, number, rank)
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
