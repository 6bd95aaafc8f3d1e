"""Attention: to channels, to skips, among tokens and within windows."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.parts import Merge, Stages, conv_norm_relu, double_conv, up_to


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze, self.excite = nn.Conv2d(channels, channels // 4, 1), nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.squeeze(self.pool(x))).flatten(1)
        return x * self.excite(y).sigmoid()[:, :, None, None]


class SqueezeExciteUNet(nn.Module):
    """Attention over channels after every block, beside the blocks and inside one."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.bottom = double_conv(3, 8), double_conv(8, 16), double_conv(16, 32)
        self.se1, self.se2, self.se3 = SqueezeExcite(8), SqueezeExcite(16), SqueezeExcite(32)
        self.dec2 = nn.Sequential(conv_norm_relu(48, 16), SqueezeExcite(16))
        self.dec1 = nn.Sequential(conv_norm_relu(24, 8), SqueezeExcite(8))
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.se1(self.enc1(x))
        b = self.se2(self.enc2(F.max_pool2d(a, 2)))
        z = self.se3(self.bottom(F.max_pool2d(b, 2)))
        y = self.dec2(torch.cat([up_to(z, b), b], 1))
        return self.out(self.dec1(torch.cat([up_to(y, a), a], 1)))


class AttentionGate(nn.Module):
    def __init__(self, skip: int, gate: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(skip, skip, 2, stride=2)
        self.phi = nn.Conv2d(gate, skip, 1)
        self.psi = nn.Conv2d(skip, 1, 1)

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.sigmoid(self.psi(F.relu(self.theta(x) + self.phi(gate), inplace=True)))
        return x * up_to(weight, x), weight


class AttentionUNet(nn.Module):
    """The gating signal is computed beside the decoder's path, on the bottleneck's grid."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.center = double_conv(3, 8), double_conv(8, 16), double_conv(16, 32)
        self.gating = conv_norm_relu(32, 32, kernel=1)
        self.attention2, self.attention1 = AttentionGate(16, 32), AttentionGate(8, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.conv3, self.conv4 = double_conv(32, 16), double_conv(16, 8)
        self.final = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        conv1 = self.conv1(x)
        conv2 = self.conv2(F.max_pool2d(conv1, 2))
        center = self.center(F.max_pool2d(conv2, 2))
        attended, _ = self.attention2(conv2, self.gating(center))
        y = self.conv3(torch.cat([attended, self.up2(center)], 1))
        attended, _ = self.attention1(conv1, y)
        return self.final(self.conv4(torch.cat([attended, self.up1(y)], 1)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class TransformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), mlp(width, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 32, patch: int = 8, tokens: int = 24) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + tokens, width) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x)[:, 0])


class Segmenter(nn.Module):
    """A classifier's `forward_features`: the transformer itself is never called, its head never used."""

    def __init__(self) -> None:
        super().__init__()
        self.vit, self.decoder = VisionTransformer(), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.decoder(self.vit.forward_features(x)[:, 1:])
        scores = tokens.transpose(1, 2).unflatten(2, (x.shape[2] // 8, x.shape[3] // 8))
        return up_to(scores, x)


class CupDecoder(nn.Module):
    """Makes a grid of tokens again, and goes up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_more, self.merge = conv_norm_relu(32, 24), Merge((8, 16, 24))

    def forward(self, tokens: Tensor, skips: list[Tensor]) -> Tensor:
        *finer, coarsest = skips
        return self.merge(*finer, self.conv_more(tokens.transpose(1, 2).reshape(len(tokens), -1, *coarsest.shape[2:])))


class HybridTransformer(nn.Module):
    """Convolutions, then tokens on their coarsest grid, then convolutions; one image size only."""

    def __init__(self, grid: tuple[int, int] = (4, 6)) -> None:
        super().__init__()
        self.cnn = Stages(widths=(8, 16, 24))
        self.embed = nn.Conv2d(24, 32, 1)
        self.position = nn.Parameter(torch.randn(1, grid[0] * grid[1], 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2)
        self.decoder = CupDecoder()

    def forward(self, x: Tensor) -> Tensor:
        features = self.cnn(x)
        tokens = self.embed(features[-1]).flatten(2).transpose(1, 2)
        return self.decoder(self.transformer(tokens + self.position), features)


class WindowBlock(nn.Module):
    """Attention within windows of a [B, H, W, C] tensor."""

    def __init__(self, width: int, window: int = 2) -> None:
        super().__init__()
        self.block, self.window = TransformerBlock(width), window

    def forward(self, x: Tensor) -> Tensor:
        height, wide = (n // self.window for n in x.shape[1:3])
        x = x.unflatten(1, (height, -1)).unflatten(3, (wide, -1)).transpose(2, 3)
        windows = self.block(x.flatten(0, 2).flatten(1, 2))
        x = windows.unflatten(1, (self.window, -1)).unflatten(0, (-1, height, wide))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class ChannelsLastSwin(nn.Module):
    """Stages of [B, H, W, C], each half the size of the last; returns them all, normalised."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48)) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, widths[0] // 4, 2, 2)
        self.reductions = nn.ModuleList(nn.Linear(4 * a, b) for a, b in itertools.pairwise((widths[0] // 4, *widths)))
        self.blocks = nn.ModuleList(WindowBlock(width) for width in widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = self.patch_embed(x).permute(0, 2, 3, 1), []
        for reduce, block, norm in zip(self.reductions, self.blocks, self.norms, strict=True):
            corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
            x = block(reduce(torch.cat(corners, -1)))
            features.append(norm(x))
        return features


class SwinPyramid(nn.Module):
    """A decoder of convolutions that brings the channels to the front itself."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.decoder = ChannelsLastSwin(), Merge((16, 32, 48))

    def forward(self, x: Tensor) -> Tensor:
        features = [f.permute(0, 3, 1, 2).contiguous() for f in self.backbone(x)]
        return up_to(self.decoder(*features), x)
