"""What whole-pass mixing is held against: a pass that stops at the code, and mixes all that is alive by then in place.

It knows nothing of what is read later. The garbage collector says which tensors are alive; what shares memory shares
the change, as it would if the model's author had written it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from latentaug.augment.base import Context
from latentaug.augment.mix import ManifoldMixup
from tests.models.hostile import Case, at, gradients, leaves, number_of_the_call, seed_all


class FixedMixup(ManifoldMixup):
    """Mix each sample with the next one, always by the same fraction."""

    def __init__(self, own: float = 0.3) -> None:
        super().__init__()
        self.own = own

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample nothing."""
        return {"order": torch.arange(1, len(code) + 1) % len(code), "own": torch.tensor(self.own)}

    def mixed(self, tensor: Tensor) -> Tensor:
        """Mix, one sample at a time."""
        rows = [self.own32 * row + (1 - self.own32) * tensor[(i + 1) % len(tensor)] for i, row in enumerate(tensor)]
        return torch.stack(rows)

    @property
    def own32(self) -> float:
        """The fraction as float32 has it."""
        return float(torch.tensor(self.own))


def tensors_alive() -> Iterator[Tensor]:
    """Yield every tensor that Python knows."""
    for one in gc.get_objects():
        if issubclass(type(one), Tensor):
            yield one


def mix_alive(batch: int, known: set[int], mix: Callable[[Tensor], Tensor]) -> None:
    """Mix every tensor with a batch axis in place, of each memory once."""
    found: dict[int, list[Tensor]] = {}
    for tensor in tensors_alive():
        if id(tensor) in known or not tensor.is_floating_point() or not tensor.ndim or len(tensor) != batch:
            continue
        found.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
    for aliases in found.values():
        whole = max(aliases, key=lambda tensor: (tensor.numel(), not tensor._is_view(), tensor.requires_grad))
        with torch.enable_grad():
            whole.copy_(mix(whole))


def mixed_by_hand(
    case: Case, train: bool, transform: FixedMixup, images: Tensor
) -> tuple[nn.Module, list[Tensor], list[Tensor | None]]:
    """Run a fresh model, seeded alike, with all that is alive at the code mixed; return outputs and gradients."""
    model, number = case.model(train), number_of_the_call(case, train)
    module, calls = model.get_submodule(case.layer), 0
    original, kept = module.forward, list[Tensor]()

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        output = original(*args, **kwargs)
        calls += 1
        if calls - 1 == number:
            assert len(at(output, case.path)) == len(images)
            mix_alive(len(images), known | {id(tensor) for tensor in kept}, transform.mixed)
        return output

    module.__dict__["forward"] = forward
    seed_all(0)
    copied = images.clone()

    def keep(tensor: Tensor) -> Tensor:
        """Keep what the backward pass needs as it was, whatever is changed in place."""
        kept.append(tensor.detach().clone())
        return kept[-1]

    with saved_tensors_hooks(keep, lambda saved: saved):
        before = [tensor for tensor in tensors_alive() if tensor is not copied]  # kept, so that none takes their place
        known = {id(tensor) for tensor in before}
        output = model(copied)
        found = gradients(model, output)
    return model, [tensor.detach() for tensor in leaves(output)], found
