"""Codes in every layout, for transforms to be held against loops over samples and channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, TOKENS, Layout


@dataclass(frozen=True)
class Kind:
    """A layout, with the shape of a code of four samples in it."""

    layout: Layout
    shape: tuple[int, ...]

    def code(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Sample a code whose channels differ in mean and deviation."""
        code = torch.randn(self.shape, generator=seeded(seed), dtype=dtype)
        axis = self.layout.channel_dim % code.ndim
        channel = torch.arange(1.0, code.shape[axis] + 1, dtype=dtype).view(-1, *[1] * (code.ndim - 1 - axis))
        return code * channel + channel.cos()


KINDS = {
    "1-D": Kind(CHANNELS_FIRST, (4, 6, 9)),
    "2-D": Kind(CHANNELS_FIRST, (4, 6, 5, 7)),
    "3-D": Kind(CHANNELS_FIRST, (4, 6, 3, 4, 5)),
    "tokens": Kind(TOKENS, (4, 15, 6)),
    "tokens_with_prefix": Kind(Layout(channel_dim=-1, prefix_tokens=2), (4, 2 + 15, 6)),
    "channels_last": Kind(CHANNELS_LAST, (4, 5, 7, 6)),
}


def seeded(seed: int = 0) -> torch.Generator:
    """Return a fresh generator."""
    return torch.Generator().manual_seed(seed)


def samples_of(code: Tensor, layout: Layout) -> list[list[Tensor]]:
    """Take a code apart: for each sample its channels, each over all spatial positions, without prefix tokens."""
    rows = code[:, layout.prefix_tokens :]
    return [list(sample.unbind(layout.channel_dim - (layout.channel_dim > 0))) for sample in rows]


def code_of(samples: list[list[Tensor]], code: Tensor, layout: Layout) -> Tensor:
    """Put a code together again; prefix tokens are those of `code`."""
    axis = layout.channel_dim - (layout.channel_dim > 0)
    rows = torch.stack([torch.stack(channels, axis) for channels in samples])
    return torch.cat([code[:, : layout.prefix_tokens], rows], 1) if layout.prefix_tokens else rows
