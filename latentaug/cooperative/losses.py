"""Losses of cooperative training, as plain callables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the mean cross entropy over labelled pixels; binary where there is one logit.

    Args:
        logits: What the network returns, before softmax or sigmoid.
        labels: Class indices; 0 and 1 where there is one logit.
        ignore_index: Label of pixels that don't count. Where none counts, the loss is 0.

    Shape:
        logits: [B, C, *S].   labels: [B, *S] or [B, 1, *S].   output: a scalar.

    Raises:
        ValueError: The labels' shape doesn't fit the logits'.

    Example:
        >>> segmentation_loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.long))
        tensor(0.6931)
        >>> segmentation_loss(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), -100))
        tensor(0.)
    """
    labels = squeeze_labels(labels, logits.ndim - 2)
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"segmentation_loss needs labels of shape {(logits.shape[0], *logits.shape[2:])} for logits of shape "
            f"{tuple(logits.shape)}; got {tuple(labels.shape)}. Labels are class indices, without a channel per class."
        )
    logits = _at_least_float32(logits)
    valid = labels != ignore_index
    if logits.shape[1] == 1:
        targets = labels.where(valid, 0).to(logits.dtype)
        total = F.binary_cross_entropy_with_logits(logits.squeeze(1), targets, valid.to(logits.dtype), reduction="sum")
    else:
        total = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    return total / valid.sum().clamp(min=1)


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Return the mean squared error between a reconstruction and the image it stands for.

    Shape:
        reconstruction, images: [B, C, *S].   output: a scalar.

    Example:
        >>> reconstruction_loss(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5))
        tensor(0.2500)
    """
    return F.mse_loss(_at_least_float32(reconstruction), _at_least_float32(images))


def squeeze_labels(labels: Tensor, spatial_dims: int) -> Tensor:
    """Return labels [B, *S] whether they came so or as [B, 1, *S]."""
    return labels.squeeze(1) if labels.ndim == spatial_dims + 2 and labels.shape[1] == 1 else labels


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Sums over an image's pixels need more than half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
