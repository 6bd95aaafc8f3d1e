"""One rank of `test_together.py`: python together.py RANK WORLD_SIZE FOLDER writes what each check has found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from latentaug import CooperativeModel, HardExamples, cooperative_backward
from latentaug.cooperative.step import standard_backward
from tests.distributed.worker import WRAPPERS, batch, cooperative
from tests.support.tiny_training import TinyNet

GRADIENTS = ("unet", "fine", "prior alone")
HAS_FULLY_SHARD = "fully_shard" in WRAPPERS


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    filled = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    return {
        name: None if grad is None else grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone()
        for name, grad in filled.items()
    }


def step(model: nn.Module, rank: int, **options: Any) -> Any:
    images, labels = batch(rank)
    generator = torch.Generator().manual_seed(10 * rank)
    return cooperative_backward(model, images, labels, generator=generator, **options)


class Holder(nn.Module):
    """Runs the step of the model that it holds within its own forward pass, as Lightning's modules do."""

    def __init__(self, model: CooperativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, rank: int) -> None:
        step(self.model, rank)


class Uneven(TinyNet):
    """Has a part that each rank but the first uses, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.now_and_then, self.never = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return self.now_and_then(logits) if images.mean() > 0.5 else logits


def uneven_gradients(rank: int) -> dict[str, Tensor | None]:
    """Run a step on images by which the model decides what it uses."""
    torch.manual_seed(0)
    images, labels = batch(rank)
    images = images / 4 + 0.7 * rank
    options = {"reconstruction": False, "shape_prior": False, "hard": HardExamples(every=1)}
    model = CooperativeModel(
        Uneven().double(), num_classes=3, example=batch(0)[0] / 4, codes="encoder", image_range=None, **options
    )
    standard_backward(model, images.double(), labels)
    return gradients_of(model)


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def averaged(rank: int) -> dict[Any, Any]:
    """Gradients of models that nothing wraps, or something that does not average."""
    found: dict[Any, Any] = {}
    for name in GRADIENTS:
        model = cooperative(name)
        step(model, rank)
        found[name, "bare"] = gradients_of(model)
        step(model, rank)
        found[name, "twice"] = gradients_of(model)
    model = cooperative("unet")
    DistributedDataParallel(Holder(model), find_unused_parameters=True)(rank)
    found["unet", "held"] = gradients_of(model)
    model = cooperative("unet")
    step(model, rank, average=False)
    found["unet", "alone"] = gradients_of(model)
    if HAS_FULLY_SHARD:
        model = cooperative("unet")
        torch.distributed.fsdp.fully_shard(model.model, mesh=init_device_mesh("cpu", (2,)))
        step(model, rank)
        found["unet", "network sharded"] = gradients_of(model)
    found["uneven"] = uneven_gradients(rank)
    model = cooperative("unet")
    with torch.no_grad():
        next(model.parameters()).add_(rank)
    found["other weights"] = refusal(lambda: step(model, rank))
    return found


CHECKS = (averaged,)


def main(rank: int, world_size: int, folder: Path, names: list[str]) -> None:
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    results = {check.__name__: check(rank) for check in CHECKS if not names or check.__name__ in names}
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
