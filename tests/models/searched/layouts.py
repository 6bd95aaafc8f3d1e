"""Codes whose channels are not second."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.parts import conv


class SwinLike(nn.Module):
    """Features [B, H, W, C], as timm's Swin returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ChannelsLastEncoder()
        self.head = nn.Sequential(nn.ConvTranspose2d(32, 8, 8, 8), conv(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].permute(0, 3, 1, 2))


class ChannelsLastEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(3, 8, 2), conv(8, 16, 2), conv(16, 32, 2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.convs:
            x = stage(x)
            features.append(x.permute(0, 2, 3, 1))
        return features


class Unpatchify(nn.Module):
    """Tokens with a class token; the last layer is wider than they are, and its output is the logits, reordered."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Conv2d(3, 24, 8, 8), nn.Linear(24, 24), nn.Linear(24, 2 * 64)
        self.register_buffer("class_token", torch.zeros(1, 1, 24))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches.flatten(2).mT], 1)
        pixels = self.out(self.mix(tokens)[:, 1:]).mT.unflatten(2, patches.shape[2:])
        return F.pixel_shuffle(pixels, 8)


class TokensOfAVolume(nn.Module):
    """A token for each of 4 x 4 x 4 sites, strided unevenly; as many channels as another grid has sites."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Conv3d(1, 32, (4, 8, 8), (4, 8, 8)), nn.Linear(32, 32)
        self.up = nn.ConvTranspose3d(32, 2, (4, 8, 8), (4, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x)
        return self.up(self.mix(patches.flatten(2).mT).mT.unflatten(2, patches.shape[2:]))
