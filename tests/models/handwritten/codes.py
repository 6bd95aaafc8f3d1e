"""Bottlenecks that are drawn, quantised or left out by chance."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.attention import mlp
from tests.models.handwritten.parts import Merge, Stages, conv_norm_relu, up_to


@dataclass
class VariationalOutput:
    logits: Tensor
    divergence: Tensor


class Variational(nn.Module):
    """The bottleneck is drawn in train mode, and is its mean in eval mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.mean(x), self.log_variance(x).clamp(-4, 4)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return z, 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).mean()


class VariationalUNet(nn.Module):
    """Returns the divergence beside the logits, in a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bottleneck, self.decoder = Stages(), Variational(32), Merge()

    def forward(self, x: Tensor) -> VariationalOutput:
        *skips, z = self.encoder(x)
        z, divergence = self.bottleneck(z)
        return VariationalOutput(self.decoder(*skips, z), divergence)


class Quantised(nn.Module):
    """Nearest entries of a codebook that follows the codes in train mode; the gradient passes straight through."""

    def __init__(self, channels: int, entries: int = 16) -> None:
        super().__init__()
        self.codebook: Tensor
        self.register_buffer("codebook", torch.randn(entries, channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sites = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        nearest = torch.cdist(sites, self.codebook).argmin(1)
        quantised = self.codebook[nearest].reshape(*x.shape[:1], *x.shape[2:], -1).permute(0, 3, 1, 2)
        if self.training:
            chosen = F.one_hot(nearest, len(self.codebook)).to(x.dtype)
            means = chosen.T @ sites.detach() / chosen.sum(0).clamp(min=1)[:, None]
            self.codebook += 0.1 * (means - self.codebook) * (chosen.sum(0) > 0)[:, None]
        return x + (quantised - x).detach(), F.mse_loss(x, quantised)


class QuantisedUNet(nn.Module):
    """Returns the logits and a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.quantise, self.decoder = Stages(), Quantised(32), Merge()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        *skips, z = self.encoder(x)
        z, commitment = self.quantise(z)
        return self.decoder(*skips, z), commitment


class StochasticBlock(nn.Module):
    """Skips its own body for some samples in train mode."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.body, self.scale, self.drop = mlp(width, 2 * width), nn.Parameter(torch.full((width,), 1e-6)), drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.norm(self.dwconv(x).permute(0, 2, 3, 1))) * self.scale
        if self.training:
            kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            y = y * kept / (1 - self.drop)
        return x + y.permute(0, 3, 1, 2)


class StochasticUNet(nn.Module):
    """Drops paths, channels, values, and whole blocks that it then never calls: on the way down and up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.stage1 = nn.Sequential(StochasticBlock(8, 0.3), nn.Dropout2d(0.2))
        self.stage2 = nn.Sequential(nn.Conv2d(8, 16, 2, 2), StochasticBlock(16, 0.4), StochasticBlock(16, 0.5))
        self.stage3 = nn.Sequential(nn.Conv2d(16, 32, 2, 2), nn.Dropout2d(0.2), StochasticBlock(32, 0.5))
        self.dec2, self.dec1, self.out = conv_norm_relu(48, 16), conv_norm_relu(24, 8), nn.ConvTranspose2d(8, 2, 2, 2)
        self.extra = nn.ModuleList(conv_norm_relu(width, width) for width in (8, 16, 16))

    def perhaps(self, block: nn.Module, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.5 else block(x)

    def forward(self, x: Tensor) -> Tensor:
        a = self.perhaps(self.extra[0], self.stage1(self.stem(x)))
        b = self.perhaps(self.extra[1], self.stage2(a))
        y = F.dropout2d(self.stage3(b), 0.2, self.training)
        y = self.perhaps(self.extra[2], self.dec2(torch.cat([up_to(y, b), b], 1)))
        y = F.dropout(self.dec1(torch.cat([up_to(y, a), a], 1)), 0.1, self.training)
        return self.out(y)
