"""Backpropagating scalars by whatever a loop calls for it, and taking gradients that have arrived further with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Backward: TypeAlias = Callable[[Tensor], Any]
"""Callable (scalar loss) that backpropagates it, times what it likes: `Tensor.backward`, `accelerator.backward`, …"""


class Backpropagation:
    """Backpropagate losses in parts, each by one call on a scalar.

    What is called may multiply its gradients, by a loss scale or by one over the batches that are accumulated. How much
    it does is seen where the gradient arrives, so that nothing is multiplied twice and saliencies are those of the
    losses themselves.

    Args:
        backward: Callable (loss) that backpropagates at once. Default: `Tensor.backward`.
        scaler: Scales the losses before, for float16; in place of `backward`.
        scale: Factor of all gradients.

    Example:
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> backpropagate = Backpropagation(lambda loss: (loss / 4).backward(), scale=2)
        >>> float(backpropagate([weight.sum(), weight.square().sum()]))
        0.5
        >>> weight.grad
        tensor([1.5000, 2.5000])
    """

    def __init__(
        self,
        backward: Backward | None = None,
        *,
        scaler: torch.amp.GradScaler | None = None,
        scale: float = 1.0,
    ) -> None:
        self._backward = _scaled_by(scaler) if scaler is not None else backward or torch.autograd.backward
        self._scale = scale

    def __call__(self, losses: Sequence[Tensor], arrived: Sequence[tuple[Tensor, Tensor | None]] = ()) -> Tensor | None:
        """Backpropagate the sum of some losses, together with other tensors whose gradients have arrived already.

        Args:
            losses: Scalars.
            arrived: Tensors with their gradients, which are taken further as they are.

        Returns:
            By what the gradients of the losses were multiplied; None where there was nothing to do.

        Raises:
            RuntimeError: `backward` did not backpropagate.
        """
        further = [(tensor, gradient) for tensor, gradient in arrived if gradient is not None]
        if not losses and not further:
            return None
        factors: list[Tensor] = []
        total = functools.reduce(torch.add, losses) if losses else further[0][0].new_zeros((), dtype=torch.float32)
        tensors = [tensor for tensor, _ in further]
        # Autocast is left before, as PyTorch asks for: the backward pass takes the types of the forward pass.
        with torch.autocast(total.device.type, enabled=False):
            joined: Tensor = _Joined.apply(factors, [gradient for _, gradient in further], total, *tensors)
            self._backward(joined if self._scale == 1 else self._scale * joined)
        if not factors:
            raise RuntimeError(
                "backward must backpropagate the loss that it is called with, at once; no gradient arrived. Pass "
                "accelerator.backward, fabric.backward, a LightningModule's manual_backward, or Tensor.backward."
            )
        return functools.reduce(torch.add, factors)


class _Joined(torch.autograd.Function):
    """A scalar whose derivative is that of a loss, and which takes gradients of other tensors along unmultiplied."""

    @staticmethod
    def forward(ctx: Any, factors: list[Tensor], gradients: list[Tensor], loss: Tensor, *tensors: Tensor) -> Tensor:
        ctx.factors, ctx.gradients = factors, gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        first = not ctx.factors  # a second call has nothing left to take further
        ctx.factors.append(factor)
        return None, None, factor, *(ctx.gradients if first else [None] * len(ctx.gradients))


def _scaled_by(scaler: torch.amp.GradScaler) -> Backward:
    return lambda loss: torch.autograd.backward(scaler.scale(loss))
