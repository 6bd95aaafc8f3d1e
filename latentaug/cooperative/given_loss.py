"""A user's own loss, called with labels as the user gave them, and of logits or of all that a model returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.checks import shown


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


class OutputLoss:
    """A loss of all that the model returns, for `CooperativeModel(loss=...)`: one made for deep supervision, say.

    It is called with what the model returns, as it is, and with the labels as they were given: a list of targets of
    several sizes, channels of regions, whatever it takes. They aren't looked at before. The model must go without image
    decoder and shape prior, which learn from logits by themselves.

    Args:
        loss: Callable (output, labels) -> scalar.

    Raises:
        TypeError: `loss` cannot be called.

    Example:
        >>> def loss(output, targets):
        ...     return sum(nn.functional.cross_entropy(one, target) for one, target in zip(output, targets))
        >>> targets = [torch.ones(1, 4).long(), torch.ones(1, 2).long()]
        >>> OutputLoss(loss)([torch.zeros(1, 2, 4), torch.zeros(1, 2, 2)], targets)
        tensor(1.3863)
    """

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        if isinstance(loss, type) or not callable(loss):
            raise TypeError(f"OutputLoss needs a callable (output, labels) -> scalar; got {shown(loss)}.")
        self.loss = loss

    def __call__(self, output: Any, labels: Any) -> Tensor:
        """Return the loss of what a model returned."""
        return self.loss(output, labels)
