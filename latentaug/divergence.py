"""How far a prediction is from another one: what needs no labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.checks import tensor


def kl_divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of a prediction from the clean one, the mean over samples and positions.

    Virtual adversarial training climbs it, and trains on it. No gradient passes through `clean`.

    Args:
        logits: Of what was changed.
        clean: Of what was not.

    Shape:
        logits, clean: [B, K, *S]; with one channel each is the logit of a binary segmentation.   output: a scalar.

    Raises:
        ValueError: The two differ in shape, or lack an axis.
        TypeError: One is no floating-point tensor.

    References:
        Miyato et al., TPAMI 2019, arXiv:1704.03976.

    Example:
        >>> clean = torch.tensor([[[0.0], [0.0]]])
        >>> kl_divergence(clean, clean), kl_divergence(torch.tensor([[[2.0], [0.0]]]), clean) > 0
        (tensor(0.), tensor(True))
    """
    for name, given in (("logits", logits), ("clean", clean)):
        tensor(name, given, who="kl_divergence")
    if logits.shape != clean.shape:
        raise ValueError(
            f"kl_divergence needs logits of one shape; got {tuple(logits.shape)} and {tuple(clean.shape)}."
        )
    if logits.ndim < 2:
        raise ValueError(f"kl_divergence needs logits [B, K, *S]; got shape {tuple(logits.shape)}.")
    precise = torch.promote_types(logits.dtype, torch.float32)
    logits, clean = logits.to(precise), clean.detach().to(precise)
    if logits.shape[1] == 1:  # the second class has a logit of 0
        logits, clean = F.pad(logits, _second(logits)), F.pad(clean, _second(clean))
    expected, got = clean.log_softmax(1), logits.log_softmax(1)
    divergence: Tensor = (expected.exp() * (expected - got)).sum(1).mean()
    return divergence


def _second(logits: Tensor) -> list[int]:
    """Return the padding that adds a channel."""
    return [0, 0] * (logits.ndim - 2) + [0, 1]
