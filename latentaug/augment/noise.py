"""Noise on a code, in proportion to the code itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.masks import Masker
from latentaug.augment.ranges import Range, as_range, draw, from_stream, source_of
from latentaug.augment.style import along, at_least_float32, moments


class AdditiveNoise(LatentTransform):
    """Add Gaussian noise to every spatial position, as strong as a fraction of each channel's own deviation.

    Returns f + sσε, where σ is the deviation of each channel of each sample and ε is from N(0, 1). A constant channel
    stays as it is. σ is a constant in the backward pass.

    Args:
        strength: s, the noise's deviation as a fraction of the channel's, in [0, 1]; a pair is sampled from uniformly
            for each sample. Default (0, 0.5).
        p: Chance that it acts, in [0, 1]. Default 1.
        per_sample: Whether to sample for each sample whether it acts, and not once for the batch.

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   output: the same.

    Samples:
        Whether to act, the strength for each sample, ε for each entry; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    Example:
        >>> code = torch.randn(4, 8, 6, 6)
        >>> change = AdditiveNoise(0.1)(code, generator=torch.Generator().manual_seed(0))
        >>> change.params["noise"].shape, bool((change.apply(code) - code).abs().max() < 1)
        (torch.Size([4, 8, 6, 6]), True)
    """

    def __init__(self, strength: Range = (0.0, 0.5), *, p: Range = 1.0, per_sample: bool = False) -> None:
        super().__init__(p=p, per_sample=per_sample)
        self.strength = as_range("strength", strength)

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        """Sample the strengths [B] and the noise [B, C, *S]."""
        return {"strength": context.uniform(self.strength, len(code)), "noise": context.randn(*code.shape)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        """Add the noise."""
        values = at_least_float32(code)
        noise: Tensor = params["noise"].to(values.dtype)
        _, deviation = moments(values, 0.0, detach=True)
        return values + along(params["strength"], values) * deviation * noise


class MultiplicativeNoise(Masker):
    """Multiply every channel of each sample by a number around 1.

    The factor is 1 + sε, where ε is from N(0, 1): a soft form of channel dropout, known as Gaussian dropout. It acts in
    train mode only; `RandomApply` gates it.

    Args:
        strength: s, the deviation of the factors, in [0, 1]; a pair is sampled from uniformly for each sample. Default
            (0, 0.5).

    Shape:
        code: [B, C, *S] (any layout given by `layout`).   factor: [B, C, 1, …].

    Samples:
        The strength for each sample, ε for each channel of each sample; all from `generator`, on its device.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of another kind.

    References:
        Srivastava et al., JMLR 2014, section 10, for multiplying single entries.

    Example:
        >>> mask = MultiplicativeNoise()(torch.ones(2, 8, 4, 4), generator=torch.Generator().manual_seed(0))
        >>> mask.factor.shape
        torch.Size([2, 8, 1, 1])
    """

    acts_in_eval = False

    def __init__(self, strength: Range = (0.0, 0.5)) -> None:
        super().__init__()
        self.strength = as_range("strength", strength)

    def sample(self, code: Tensor, saliency: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
        """Sample the factor [B, C, 1, …]."""
        strength = draw(self.strength, (len(code), 1), code.device, generator)
        source = source_of(generator)
        noise = torch.randn(code.shape[:2], device=source, **from_stream(generator))
        factor = 1 + strength * noise.to(code.device, non_blocking=noise.is_cpu)
        return factor.view(*factor.shape, *[1] * (code.ndim - 2))
