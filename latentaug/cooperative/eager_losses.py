"""Losses of a network with branches, each backpropagated as soon as its branch is through."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentaug.checks import scalar
from latentaug.cooperative.backpropagation import Backpropagation
from latentaug.saliency import latent_saliency


class Losses:
    """The weighted losses of a stage of training.

    A branch starts at a tensor that it shares with others, such as a latent code, and ends in a loss. Eagerly, each
    branch is backpropagated when it ends, as far as a leaf that stands for the tensor, and its graph is gone before the
    next one is built; `backward` takes the gradients that have arrived there further. Gradients come out the same, at a
    peak of memory of the trunk and the largest branch. Otherwise the losses are only weighted and summed.

    Args:
        weights: Factor of each loss, by name.
        backpropagate: What to backpropagate here with; None to leave it.

    Example:
        >>> code = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> losses = Losses({"branch": 3.0, "trunk": 1.0}, Backpropagation())
        >>> losses.end("branch", losses.start("branch", code).square().sum())
        >>> losses.saliencies("branch", [code]), code.grad
        ([tensor([2., 4.])], None)
        >>> _ = losses.add("trunk", code.sum())
        >>> losses.backward()
        >>> code.grad
        tensor([ 7., 13.])
    """

    def __init__(self, weights: Mapping[str, float], backpropagate: Backpropagation | None = None) -> None:
        self._weights, self._backpropagate = weights, backpropagate
        self._plain: dict[str, Tensor] = {}
        self._weighted: dict[str, Tensor] = {}
        self._starts: dict[str, list[_Start]] = {}
        self._factors: dict[str, Tensor] = {}  # of the gradients of branches that have ended

    @property
    def eager(self) -> bool:
        """Whether losses are backpropagated here."""
        return self._backpropagate is not None

    @property
    def weighted(self) -> dict[str, Tensor]:
        """The losses times their weights, in the order of these."""
        return {name: self._weighted[name] for name in self._weights if name in self._weighted}

    @property
    def total(self) -> Tensor:
        """Sum of `weighted`."""
        terms = list(self.weighted.values())
        return functools.reduce(torch.add, terms) if terms else torch.zeros(())

    def start(self, name: str, tensor: Tensor) -> Tensor:
        """Return what the branch of a loss is to be computed from in place of a tensor."""
        if not (self.eager and self._weights[name] and tensor.requires_grad):
            return tensor
        leaf = tensor.detach().requires_grad_()
        self.stand_in(name, leaf, tensor)
        return leaf

    def stand_in(self, name: str, leaf: Tensor, tensor: Tensor, *, further: bool = True) -> None:
        """Note that the branch of a loss starts at a leaf that stands for a tensor.

        Args:
            name: The loss.
            leaf: What the branch is computed from.
            tensor: What it stands for.
            further: Whether the gradients that arrive at the leaf are taken further, through the graph of the tensor.
        """
        self._starts.setdefault(name, []).append(_Start(leaf, tensor, further))

    def end(self, name: str, loss: Tensor) -> None:
        """Take the loss of a branch, and let go of the branch if possible."""
        loss = self.add(name, loss)
        if self._backpropagate is not None and self._weights[name] and loss.requires_grad:
            factor = self._backpropagate([self._weighted[name]])
            assert factor is not None
            self._factors[name] = self._weights[name] * factor
            self._plain[name], self._weighted[name] = loss.detach(), self._weighted[name].detach()

    def add(self, name: str, loss: Tensor) -> Tensor:
        """Take a loss that needs the trunk, and is backpropagated with it; return it, checked."""
        self._plain[name] = loss = scalar("loss", loss, who="CooperativeModel")
        weight = self._weights[name]
        self._weighted[name] = weight * loss if weight else 0 * loss.detach()
        return loss

    def saliencies(self, name: str, codes: Sequence[Tensor]) -> list[Tensor]:
        """Differentiate a loss, without its weight, by codes; where its branch has ended, by the code it started at."""
        starts = {id(given): start.leaf for start in self._starts.get(name, ()) for given in (start.leaf, start.tensor)}
        leaves = [starts.get(id(code), code) for code in codes]
        if name not in self._factors:
            return latent_saliency(self._plain[name], leaves)
        return [_arrived(leaf) / self._factors[name] for leaf in leaves]

    def backward(self) -> None:
        """Backpropagate what `end` has left, but for losses that weigh nothing."""
        rest = [loss for name, loss in self._weighted.items() if loss.requires_grad and self._weights[name]]
        further = (start for starts in self._starts.values() for start in starts if start.further)
        if self._backpropagate is not None:
            self._backpropagate(rest, [(start.tensor, start.leaf.grad) for start in further])


class _Start(NamedTuple):
    leaf: Tensor
    tensor: Tensor
    further: bool


def _arrived(leaf: Tensor) -> Tensor:
    if leaf.grad is None:  # nothing of the branch reads it
        return torch.zeros_like(leaf, dtype=torch.promote_types(leaf.dtype, torch.float32))
    return leaf.grad.float() if leaf.dtype == torch.float16 else leaf.grad
