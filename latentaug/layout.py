"""Where channels and sites are in a latent code, and how to see any code as [B, C, *S]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentaug.checks import shown, whole


@dataclass(frozen=True)
class Layout:
    """Say which axis of a code holds the channels, and how many leading tokens are no sites.

    Args:
        channel_dim: Axis of the channels; negative counts from the end. Axis 0 is always the batch.
        prefix_tokens: Leading tokens (class, registers) of a [B, N, C] code that are neither scored nor masked.

    Raises:
        ValueError: An argument is no whole number, or the two contradict each other; or (from the methods) the code
            does not fit.

    Example:
        >>> import torch
        >>> layout = Layout(channel_dim=-1, prefix_tokens=1)
        >>> print(layout)
        tokens, 1 prefix
        >>> layout.to_channels_first(torch.zeros(2, 1 + 16, 8)).shape
        torch.Size([2, 8, 16])
    """

    channel_dim: int = 1
    prefix_tokens: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.channel_dim, bool) or not isinstance(self.channel_dim, int):
            dim = shown(self.channel_dim)
            raise ValueError(f"Layout needs a whole number as channel_dim; got {dim}. Pass 1, or -1 for channels last.")
        whole("prefix_tokens of a Layout", self.prefix_tokens, least=0)
        if self.channel_dim == 0:
            raise ValueError("Layout needs channel_dim other than 0, the batch axis. Pass 1, or -1 for channels last.")
        if self.prefix_tokens and self.channel_dim not in (-1, 2):
            raise ValueError(
                f"Layout needs channel_dim=-1 for prefix_tokens={self.prefix_tokens}, a code [B, N, C]; "
                f"got channel_dim={self.channel_dim}."
            )

    def __str__(self) -> str:
        if self.prefix_tokens:
            return f"tokens, {self.prefix_tokens} prefix"
        named = {1: "channels first", -1: "channels last"}
        return named.get(self.channel_dim, f"channels at axis {self.channel_dim}")

    def to_channels_first(self, code: Tensor) -> Tensor:
        """Show a code as [B, C, *S], without its prefix tokens; a view.

        Raises:
            ValueError: The code has not the axes, or not the tokens, that this layout speaks of.
        """
        self._check(code)
        sites = code[:, self.prefix_tokens :] if self.prefix_tokens else code
        return sites.movedim(self.channel_dim, 1)

    def put_back(self, view: Tensor, code: Tensor) -> Tensor:
        """Bring what was made of the [B, C, *S] view back to the code's own layout; prefix tokens stay the code's.

        Raises:
            ValueError: The code has not the axes, or not the tokens, that this layout speaks of.
        """
        self._check(code)
        tokens = view.movedim(1, self.channel_dim)
        return torch.cat([code[:, : self.prefix_tokens], tokens], dim=1) if self.prefix_tokens else tokens

    def from_channels_first(self, factor: Tensor, code: Tensor) -> Tensor:
        """Bring a factor that broadcasts to the [B, C, *S] view back to the code's own layout; prefix tokens get ones.

        Raises:
            ValueError: The code has not the axes, or not the tokens, that this layout speaks of.
        """
        view = self.to_channels_first(code)
        if not self.prefix_tokens:
            return factor.movedim(1, self.channel_dim)
        every_site = factor.expand(-1, -1, view.shape[2]).movedim(1, self.channel_dim)
        return F.pad(every_site, (0, 0, self.prefix_tokens, 0), value=1.0)

    def _check(self, code: Tensor) -> None:
        shape = tuple(code.shape)
        if code.ndim < 3:
            raise ValueError(
                f"Layout ({self}) needs a code with a batch, a channel and a site axis; got shape {shape}. "
                "Add a site axis with code.unsqueeze(-1)."
            )
        if not -code.ndim < self.channel_dim < code.ndim:
            raise ValueError(
                f"Layout ({self}) needs a code with channels at axis {self.channel_dim}; got shape {shape}."
            )
        if self.prefix_tokens and code.ndim != 3:
            raise ValueError(f"Layout ({self}) needs a code [B, N, C]; got shape {shape}. Pass prefix_tokens=0.")
        if self.prefix_tokens and code.shape[1] <= self.prefix_tokens:
            raise ValueError(f"Layout ({self}) needs more tokens than the prefix; got shape {shape}.")


CHANNELS_FIRST = Layout()
CHANNELS_LAST = Layout(channel_dim=-1)
TOKENS = CHANNELS_LAST
