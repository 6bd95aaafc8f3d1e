"""A user's own loss, called with labels as the user gave them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class GivenLoss:
    """Call a user's loss, and say what it was called with where it fails.

    It gets labels in the shape that the user gave, rounded to whole numbers: floating-point labels in floating point,
    unless the loss takes class indices only, and all others as int64.

    A loss that is a module isn't part of the model: its weights, such as those of classes, are settings. They are
    neither trained nor saved with the model.

    Args:
        loss: Callable (logits, labels) -> scalar.

    Example:
        >>> loss = GivenLoss(nn.CrossEntropyLoss())
        >>> loss(torch.zeros(1, 2, 4), torch.ones(1, 4))
        tensor(0.6931)
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss = loss
        self._takes_indices_only = False

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits and labels.

        Raises:
            ValueError: The loss fails on labels with an axis of channels.
        """
        self._place(logits.device)
        if not labels.is_floating_point():
            return self._call(logits, labels)
        if not self._takes_indices_only:
            try:
                return self._call(logits, labels)
            except (RuntimeError, TypeError, IndexError, ValueError) as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
        found = self._call(logits, labels.long())
        self._takes_indices_only = True
        return found

    def _call(self, logits: Tensor, labels: Tensor) -> Tensor:
        try:
            return self.loss(logits, labels)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            if labels.ndim < logits.ndim or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise ValueError(
                f"loss must take labels in the shape they come in; with logits of shape {tuple(logits.shape)} and "
                f"labels of shape {tuple(labels.shape)} it raised {type(error).__name__}: {error}\n"
                "Pass labels [B, *S], or a loss that squeezes the axis of channels."
            ) from error

    def _place(self, device: torch.device) -> None:
        """Bring the weights of a loss that is a module to where the logits are."""
        if isinstance(self.loss, nn.Module):
            held = [*self.loss.parameters(), *self.loss.buffers()]
            if any(tensor.device != device for tensor in held):
                self.loss.to(device)
