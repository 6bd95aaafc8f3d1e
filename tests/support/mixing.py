"""What whole-pass mixing is held against: a pass that stops at the code, and mixes all that is alive by then in place.

It knows nothing of what is read later. The garbage collector says which tensors are alive; what shares memory shares
the change, as it would if the model's author had written it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from latentaug.augment.base import Context
from latentaug.augment.mix import ManifoldMixup
from latentaug.tracing.tree import is_differentiable
from tests.models.case import Case
from tests.support.compare import gradients
from tests.support.oracle import number_of_the_call
from tests.support.random_streams import seed_all
from tests.support.trees import at, leaves


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


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Hide what exists from the garbage collector."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def mix_alive(batch: int, mix: Callable[[Tensor], Tensor], *, but: Collection[Tensor] = ()) -> None:
    """Mix every tensor that Python knows and that has a batch axis in place, of each memory once."""
    excepted, found = {id(tensor) for tensor in but}, dict[int, list[Tensor]]()
    for one in gc.get_objects():
        if not issubclass(type(one), Tensor) or id(one) in excepted:
            continue
        if is_differentiable(one) and one.ndim and len(one) == batch:
            found.setdefault(one.untyped_storage()._cdata, []).append(one)
    for aliases in found.values():
        whole = max(aliases, key=lambda tensor: (tensor.numel(), not tensor._is_view(), tensor.requires_grad))
        with torch.enable_grad():
            whole.copy_(mix(whole))


def mixed_by_hand(
    case: Case, train: bool, transform: FixedMixup, images: Tensor
) -> tuple[nn.Module, list[Tensor], list[Tensor | None]]:
    """Run a fresh model, seeded alike, with all that is alive at the code mixed; return outputs and gradients."""
    model, number = case.model(train), number_of_the_call(case, train)
    module, calls, kept = model.get_submodule(case.layer), 0, list[Tensor]()
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        output = original(*args, **kwargs)
        calls += 1
        if calls - 1 == number:
            assert len(at(output, case.path)) == len(images)
            mix_alive(len(images), transform.mixed, but=kept)
        return output

    def keep(tensor: Tensor) -> Tensor:
        """Keep what the backward pass needs as it was, whatever is changed in place."""
        kept.append(tensor.detach().clone())
        return kept[-1]

    module.__dict__["forward"] = forward
    seed_all(0)
    with only_new_objects(), saved_tensors_hooks(keep, lambda saved: saved):
        output = model(images.clone())
    return model, [tensor.detach() for tensor in leaves(output)], gradients(model, output)
