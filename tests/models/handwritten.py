"""Segmentation networks as people write them by hand: a small one for each common style."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_norm_relu(inputs, outputs), conv_norm_relu(outputs, outputs))


def up_to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


# U-Nets, and how their levels are written ---------------------------------------------------------------------------


class FunctionalUNet(nn.Module):
    """Pooling, upsampling and skips are functions in `forward`."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.enc1 = double_conv(3, 8)
        self.enc2 = double_conv(8, 16)
        self.bottom = double_conv(16, 32)
        self.dec2 = double_conv(32 + 16, 16)
        self.dec1 = double_conv(16 + 8, 8)
        self.out = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.enc2(F.max_pool2d(a, 2))
        z = self.bottom(F.max_pool2d(b, 2))
        y = self.dec2(torch.cat([up_to(z, b), b], 1))
        y = self.dec1(torch.cat([up_to(y, a), a], 1))
        return self.out(y)


class SequentialUNet(nn.Module):
    """Encoder and decoder are `nn.Sequential`, but walked through block by block: neither is ever called itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            double_conv(3, 8),
            nn.Sequential(nn.MaxPool2d(2), double_conv(8, 16)),
            nn.Sequential(nn.MaxPool2d(2), double_conv(16, 32)),
        )
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.decoder = nn.Sequential(double_conv(32 + 16, 16), double_conv(16 + 8, 8))
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for block in self.encoder:
            x = block(x)
            features.append(x)
        for block, skip in zip(self.decoder, features[-2::-1], strict=True):
            x = block(torch.cat([self.upsample(x), skip], 1))
        return self.out(x)


class PoppingUNet(nn.Module):
    """Levels in `nn.ModuleList`s, transposed convolutions among the blocks, skips popped off a list."""

    def __init__(self, widths: tuple[int, ...] = (4, 8, 16)) -> None:
        super().__init__()
        self.downs, self.ups, self.pool = nn.ModuleList(), nn.ModuleList(), nn.MaxPool2d(2)
        for inputs, width in itertools.pairwise((3, *widths)):
            self.downs.append(double_conv(inputs, width))
        for width in reversed(widths):
            self.ups.append(nn.ConvTranspose2d(width * 2, width, 2, 2))
            self.ups.append(double_conv(width * 2, width))
        self.bottleneck = double_conv(widths[-1], widths[-1] * 2)
        self.final_conv = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for i in range(0, len(self.ups), 2):
            x = self.ups[i](x)
            x = self.ups[i + 1](torch.cat((skips.pop(), x), dim=1))
        return self.final_conv(x)


class SharedUNet(nn.Module):
    """One block serves every level of the encoder, and perhaps of the decoder too; so do pooling and activation."""

    def __init__(self, decoder_too: bool) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.act = nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8), self.act)
        self.up_block = self.block if decoder_too else nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), self.act)
        self.merge = nn.Conv2d(16, 8, 1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.act(self.stem(x)), []
        for _ in range(3):
            x = self.block(x)
            skips.append(x)
            x = self.down(x)
        x = self.block(x)
        for skip in reversed(skips):
            x = self.up_block(self.merge(torch.cat([self.up(x), skip], 1)))
        return self.out(x)


class BasicBlock(nn.Module):
    """ResNet's block: activations in place, and `+=`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class InPlacePyramid(nn.Module):
    """A feature pyramid on a residual encoder; sums and activations all happen in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = BasicBlock(3, 8, 1)
        self.layer2 = BasicBlock(8, 16, 2)
        self.layer3 = BasicBlock(16, 32, 2)
        self.top = nn.Conv2d(32, 8, 1)
        self.lateral2, self.lateral1 = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1)
        self.smooth = nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        c1 = self.layer1(x)
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        y = F.interpolate(self.top(c3), scale_factor=2)
        y += self.lateral2(c2)
        y = F.interpolate(F.relu_(y), scale_factor=2)
        y += self.lateral1(c1)
        y = self.smooth(y.relu_())
        y *= 0.5
        return self.out(y)


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


class Down(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), double_conv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Bilinear upsampling, padded to the size of the skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = double_conv(inputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        high, wide = (a - b for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
        x = F.pad(x, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class PaddingUNet(nn.Module):
    """Takes images of any size: decoders pad what upsampling makes too small."""

    def __init__(self) -> None:
        super().__init__()
        self.inc = double_conv(3, 8)
        self.down1, self.down2, self.down3 = Down(8, 16), Down(16, 32), Down(32, 32)
        self.up1, self.up2, self.up3 = Up(64, 16), Up(32, 8), Up(16, 8)
        self.outc = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up1(self.down3(x3), x3)
        x = self.up2(x, x2)
        return self.outc(self.up3(x, x1))


class UnpaddedUNet(nn.Module):
    """Convolutions without padding and cropped skips, as first published: the output is smaller than the input."""

    def __init__(self) -> None:
        super().__init__()
        self.contract1, self.contract2, self.bottom = self.block(3, 8), self.block(8, 16), self.block(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.expand2, self.expand1 = self.block(32, 16), self.block(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.Conv2d(outputs, outputs, 3), nn.ReLU())

    @staticmethod
    def cropped(skip: Tensor, like: Tensor) -> Tensor:
        top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], like.shape[2:], strict=True))
        return skip[:, :, top : top + like.shape[2], left : left + like.shape[3]]

    def forward(self, x: Tensor) -> Tensor:
        a = self.contract1(x)
        b = self.contract2(F.max_pool2d(a, 2))
        y = self.up2(self.bottom(F.max_pool2d(b, 2)))
        y = self.up1(self.expand2(torch.cat([self.cropped(b, y), y], 1)))
        return self.out(self.expand1(torch.cat([self.cropped(a, y), y], 1)))


class PreActivation(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 3, stride, 1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
        )
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


class ResUNet(nn.Module):
    """Residual blocks before their activation; strides instead of pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Conv2d(3, 8, 3, padding=1)
        self.residual1, self.residual2 = PreActivation(8, 16, 2), PreActivation(16, 32, 2)
        self.bridge = PreActivation(32, 64, 2)
        self.upsample3, self.upsample2 = nn.ConvTranspose2d(64, 64, 2, 2), nn.ConvTranspose2d(32, 32, 2, 2)
        self.upsample1 = nn.ConvTranspose2d(16, 16, 2, 2)
        self.up_residual3, self.up_residual2 = PreActivation(64 + 32, 32), PreActivation(32 + 16, 16)
        self.up_residual1 = PreActivation(16 + 8, 8)
        self.output_layer = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.input_layer(x)
        x2 = self.residual1(x1)
        x3 = self.residual2(x2)
        x = self.up_residual3(torch.cat([self.upsample3(self.bridge(x3)), x3], 1))
        x = self.up_residual2(torch.cat([self.upsample2(x), x2], 1))
        x = self.up_residual1(torch.cat([self.upsample1(x), x1], 1))
        return self.output_layer(x)


class SkipBlock(nn.Module):
    """One level of a U-Net around the next: its activations change skips in place."""

    def __init__(self, outer: int, inner: int, inside: nn.Module | None = None) -> None:
        super().__init__()
        down = [nn.LeakyReLU(0.2, True), nn.Conv2d(outer, inner, 4, 2, 1)]
        up = [nn.ReLU(True), nn.ConvTranspose2d(inner if inside is None else inner * 2, outer, 4, 2, 1)]
        self.model = nn.Sequential(*down, *([] if inside is None else [inside]), *up, nn.InstanceNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], 1)


class RecursiveUNet(nn.Module):
    """Built from the inside out, as image translation does it; no module but the innermost ones sees the bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        block = SkipBlock(8, 16, SkipBlock(16, 32, SkipBlock(32, 32)))
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), block, nn.ReLU(True), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SegNet(nn.Module):
    """Upsampling by the indices of the maxima; the pooling that makes the bottleneck makes every other level too."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.enc3 = double_conv(3, 8), double_conv(8, 16), double_conv(16, 32)
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)
        self.dec3, self.dec2, self.dec1 = double_conv(32, 16), double_conv(16, 8), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x, index1 = self.pool(self.enc1(x))
        x, index2 = self.pool(self.enc2(x))
        x, index3 = self.pool(self.enc3(x))
        x = self.dec3(self.unpool(x, index3))
        x = self.dec2(self.unpool(x, index2))
        return self.dec1(self.unpool(x, index1))


class FullyConvolutional(nn.Module):
    """A classifier made a segmenter: scores on the coarsest grid, upsampled and added to those of a finer one."""

    def __init__(self) -> None:
        super().__init__()
        self.features1 = nn.Sequential(conv_norm_relu(3, 8), nn.MaxPool2d(2), conv_norm_relu(8, 16), nn.MaxPool2d(2))
        self.features2 = nn.Sequential(conv_norm_relu(16, 32), nn.MaxPool2d(2))
        self.fully_connected = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(True), nn.Dropout2d(), nn.Conv2d(64, 64, 1), nn.ReLU(True)
        )
        self.score, self.score1 = nn.Conv2d(64, 4, 1), nn.Conv2d(16, 4, 1)
        self.upscore, self.upscore1 = nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.ConvTranspose2d(4, 4, 8, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        finer = self.features1(x)
        scores = self.upscore(self.score(self.fully_connected(self.features2(finer))))
        return self.upscore1(scores + self.score1(finer))


class UNetPlusPlus(nn.Module):
    """Nested skips; four outputs, of which the first does not see the bottleneck."""

    def __init__(self, widths: tuple[int, ...] = (4, 8, 16, 32)) -> None:
        super().__init__()
        for depth, width in enumerate(widths):
            self.add_module(f"conv{depth}_0", double_conv(widths[depth - 1] if depth else 3, width))
            for column in range(1, len(widths) - depth):
                self.add_module(f"conv{depth}_{column}", double_conv(column * width + widths[depth + 1], width))
        self.final = nn.ModuleList(nn.Conv2d(widths[0], 2, 1) for _ in widths[1:])
        self.depth = len(widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        nodes: dict[tuple[int, int], Tensor] = {}
        for total in range(self.depth):
            nodes[total, 0] = self.get_submodule(f"conv{total}_0")(F.max_pool2d(x, 2) if total else x)
            x = nodes[total, 0]
            for column in range(1, total + 1):
                depth = total - column
                skips = [nodes[depth, before] for before in range(column)]
                above = up_to(nodes[depth + 1, column - 1], skips[0])
                nodes[depth, column] = self.get_submodule(f"conv{depth}_{column}")(torch.cat([*skips, above], 1))
        return [head(nodes[0, column]) for column, head in enumerate(self.final, start=1)]


class ResidualU(nn.Module):
    """A U-Net as a block; of depth 0, it keeps the grid."""

    def __init__(self, inputs: int, inner: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.conv_in = conv_norm_relu(inputs, outputs)
        self.downs = nn.ModuleList(conv_norm_relu(outputs if i == 0 else inner, inner) for i in range(depth))
        deepest = inner if depth else outputs
        self.bottom = nn.Sequential(nn.Conv2d(deepest, deepest, 3, padding=2, dilation=2), nn.ReLU(True))
        self.ups = nn.ModuleList(conv_norm_relu(2 * inner, inner if i < depth - 1 else outputs) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        y, skips = x, []
        for down in self.downs:
            y = down(y)
            skips.append(y)
            y = F.max_pool2d(y, 2, stride=2, ceil_mode=True)
        y = self.bottom(y)
        for up in self.ups:
            skip = skips.pop()
            y = up(torch.cat([up_to(y, skip), skip], 1))
        return x + y


class U2Net(nn.Module):
    """U-Nets in a U-Net, each reaching down to the outer bottleneck's grid; every level has an output."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2 = ResidualU(3, 4, 8, 3), ResidualU(8, 4, 16, 2)
        self.stage3, self.stage4 = ResidualU(16, 8, 16, 1), ResidualU(16, 8, 16, 0)
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.stage3d, self.stage2d = ResidualU(32, 4, 8, 1), ResidualU(24, 4, 8, 2)
        self.stage1d = ResidualU(16, 4, 8, 3)
        self.side1, self.side2, self.side3, self.side4 = (nn.Conv2d(n, 2, 3, padding=1) for n in (8, 8, 8, 16))
        self.outconv = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x1 = self.stage1(x)
        x2 = self.stage2(self.pool(x1))
        x3 = self.stage3(self.pool(x2))
        x4 = self.stage4(self.pool(x3))
        x3d = self.stage3d(torch.cat((up_to(x4, x3), x3), 1))
        x2d = self.stage2d(torch.cat((up_to(x3d, x2), x2), 1))
        x1d = self.stage1d(torch.cat((up_to(x2d, x1), x1), 1))
        d1 = self.side1(x1d)
        d2, d3, d4 = up_to(self.side2(x2d), d1), up_to(self.side3(x3d), d1), up_to(self.side4(x4), d1)
        return self.outconv(torch.cat((d1, d2, d3, d4), 1)), d1, d2, d3, d4


class MultiResBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv3 = conv_norm_relu(inputs, width // 4)
        self.conv5 = conv_norm_relu(width // 4, width // 4)
        self.conv7 = conv_norm_relu(width // 4, width // 2)
        self.shortcut, self.norm = nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv3(x)
        b = self.conv5(a)
        c = self.conv7(b)
        return F.relu(self.norm(torch.cat([a, b, c], 1) + self.shortcut(x)))


class ResPath(nn.Sequential):
    """Convolutions on the way of a skip connection."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = F.relu(layer(x) + x)
        return x


class MultiResUNet(nn.Module):
    """Blocks of several receptive fields, and skips that are paths of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.multires1, self.multires2 = MultiResBlock(3, 8), MultiResBlock(8, 16)
        self.multires3 = MultiResBlock(16, 32)
        self.respath1 = ResPath(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
        self.respath2 = ResPath(nn.Conv2d(16, 16, 3, padding=1))
        self.upsample2, self.upsample1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.multires4, self.multires5 = MultiResBlock(32, 16), MultiResBlock(16, 8)
        self.conv_final = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.multires1(x)
        b = self.multires2(F.max_pool2d(a, 2))
        a = self.respath1(a)
        z = self.multires3(F.max_pool2d(b, 2))
        b = self.respath2(b)
        y = self.multires4(torch.cat([self.upsample2(z), b], 1))
        return self.conv_final(self.multires5(torch.cat([self.upsample1(y), a], 1)))


class DenseBlock(nn.Module):
    """Every layer sees all before it; returns what it added, and what it was given if asked."""

    def __init__(self, inputs: int, layers: int, growth: int, with_input: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv_norm_relu(inputs + i * growth, growth) for i in range(layers))
        self.with_input = with_input

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features if self.with_input else features[1:], 1)


class Tiramisu(nn.Module):
    """Dense blocks. The block at the bottom hands on what it added only, fewer channels than it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.dense_down = nn.ModuleList([DenseBlock(8, 2, 8, True), DenseBlock(24, 2, 8, True)])
        self.transition_down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, n, 1), nn.Dropout2d(0.2), nn.MaxPool2d(2)) for n in (24, 40)
        )
        self.bottleneck = DenseBlock(40, 3, 8, False)
        self.transition_up = nn.ModuleList([nn.ConvTranspose2d(24, 24, 2, 2), nn.ConvTranspose2d(16, 16, 2, 2)])
        self.dense_up = nn.ModuleList([DenseBlock(24 + 40, 2, 8, False), DenseBlock(16 + 24, 2, 8, True)])
        self.final = nn.Conv2d(56, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), []
        for dense, transition in zip(self.dense_down, self.transition_down, strict=True):
            x = dense(x)
            skips.append(x)
            x = transition(x)
        x = self.bottleneck(x)
        for dense, transition in zip(self.dense_up, self.transition_up, strict=True):
            x = dense(torch.cat([transition(x), skips.pop()], 1))
        return self.final(x)


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


# Contexts, pyramids and parallel branches ---------------------------------------------------------------------------


class AtrousPyramid(nn.Module):
    """Dilated convolutions side by side with the pooled image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate), nn.ReLU()) for rate in (1, 2, 3)
        )
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1), nn.ReLU())
        self.project = conv_norm_relu(4 * outputs, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.image_pool(x).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))


class DeepLab(nn.Module):
    """The pyramid squeezes what a wider backbone returns, on the same grid."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(BasicBlock(3, 8, 2), BasicBlock(8, 16, 2), BasicBlock(16, 48, 2))
        self.aspp = AtrousPyramid(48, 16)
        self.classifier = nn.Sequential(conv_norm_relu(16, 16), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": up_to(self.classifier(self.aspp(self.backbone(x))), x)}


class BridgeUNet(nn.Module):
    """The same pyramid as a U-Net's bridge, wider than the encoder's last stage."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.enc3 = BasicBlock(3, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 16, 2)
        self.bridge = AtrousPyramid(16, 32)
        self.dec2, self.dec1 = double_conv(32 + 16, 16), double_conv(16 + 8, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.enc2(a)
        z = self.bridge(self.enc3(b))
        y = self.dec2(torch.cat([up_to(z, b), b], 1))
        return self.out(self.dec1(torch.cat([up_to(y, a), a], 1)))


class PooledPyramid(nn.Module):
    """Pools to fixed grids by functions in `forward`: coarser grids than the encoder's, and none of them the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(BasicBlock(3, 8, 2), BasicBlock(8, 16, 2), BasicBlock(16, 32, 2))
        self.reductions = nn.ModuleList(conv_norm_relu(32, 8, kernel=1) for _ in range(3))
        self.out = nn.Sequential(conv_norm_relu(32 + 24, 16), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        pooled = [
            up_to(reduce(F.adaptive_avg_pool2d(z, bins)), z)
            for bins, reduce in zip((2, 3, 4), self.reductions, strict=True)
        ]
        return up_to(self.out(torch.cat([z, *pooled], 1)), x)


class Exchange(nn.Module):
    """Resolutions side by side, each given the others, and one coarser than before."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(BasicBlock(width, width, 1) for width in widths)
        self.fuse = nn.ModuleList(nn.ModuleList(nn.Conv2d(a, b, 1) for a in widths) for b in widths)
        self.transition = conv_norm_relu(widths[-1], widths[-1] * 2, stride=2)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        features = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        mixed = [
            F.relu(sum(up_to(conv(x), like) for conv, x in zip(row, features, strict=True)))
            for row, like in zip(self.fuse, features, strict=True)
        ]
        return [*mixed, self.transition(mixed[-1])]


class HighResolutionNet(nn.Module):
    """Keeps a fine grid throughout; the coarsest branch is one of three that the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage1, self.stage2 = conv_norm_relu(3, 8, stride=2), Exchange((8,)), Exchange((8, 16))
        self.head = nn.Sequential(conv_norm_relu(56, 16, kernel=1), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.stage2(self.stage1([self.stem(x)]))
        return up_to(self.head(torch.cat([up_to(f, features[0]) for f in features], 1)), x)


class Stages(nn.Module):
    """An encoder that returns a dictionary, or a list, of features; the next networks share it."""

    def __init__(self, inputs: int = 3, widths: tuple[int, ...] = (8, 16, 32), named: bool = False) -> None:
        super().__init__()
        self.stages = nn.ModuleList(BasicBlock(a, b, 2) for a, b in itertools.pairwise((inputs, *widths)))
        self.named = named

    def forward(self, x: Tensor) -> Any:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return {f"res{i}": f for i, f in enumerate(features, start=1)} if self.named else features


class Merge(nn.Module):
    """A decoder of features, finest first."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32), classes: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv_norm_relu(a + b, a) for a, b in reversed(list(itertools.pairwise(widths))))
        self.predict = nn.Conv2d(widths[0], classes, 1)

    def forward(self, *features: Tensor) -> Tensor:
        *skips, x = features
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(torch.cat([up_to(x, skip), skip], 1))
        return F.interpolate(self.predict(x), scale_factor=2)


class NamedFeatures(nn.Module):
    """Features travel from module to module in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.sem_seg_head = Stages(named=True), Merge()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        return {"logits": self.sem_seg_head(*(features[name] for name in ("res1", "res2", "res3")))}


class QuarterResolution(nn.Module):
    """All levels projected alike and brought to the finest of them, where the logits stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoder = conv_norm_relu(3, 8, stride=2), Stages(8)
        self.linear = nn.ModuleList(nn.Conv2d(width, 16, 1) for width in (8, 16, 32))
        self.linear_fuse, self.linear_pred = conv_norm_relu(48, 16, kernel=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(self.stem(x))
        projected = [up_to(linear(f), features[0]) for linear, f in zip(self.linear, features, strict=True)]
        return self.linear_pred(self.linear_fuse(torch.cat(projected, 1)))


class Refinement(nn.Module):
    """Weighs channels by what they are in the image as a whole."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.weigh = conv_norm_relu(inputs, outputs), nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.weigh(F.adaptive_avg_pool2d(x, 1)).sigmoid()


class ContextPath(nn.Module):
    """Goes down, and comes half-way up again before it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet, self.conv_avg = Stages(), conv_norm_relu(32, 16, kernel=1)
        self.refine8, self.refine4 = Refinement(32, 16), Refinement(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        _, quarter, eighth = self.resnet(x)
        pooled = self.conv_avg(eighth.mean((2, 3), keepdim=True))
        return self.refine4(quarter) + up_to(self.refine8(eighth) + pooled, quarter)


class Bilateral(nn.Module):
    """A shallow path for detail beside a deep one for context."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(conv_norm_relu(3, 8, stride=2), conv_norm_relu(8, 16, stride=2))
        self.context, self.fusion = ContextPath(), conv_norm_relu(32, 16, kernel=1)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return up_to(self.out(self.fusion(torch.cat([self.spatial(x), self.context(x)], 1))), x)


class ChangeDetector(nn.Module):
    """One encoder for two images, called for each; the decoder sees how they differ."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stages(), Merge()

    def forward(self, x: Tensor) -> Tensor:
        before, after = x.chunk(2, 1)
        first, second = self.encoder(before), self.encoder(after)
        return self.decoder(*((b - a).abs() for a, b in zip(first, second, strict=True)))


class BatchedChangeDetector(nn.Module):
    """Two images as one batch of twice the size, until a module brings each level together."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stages(), Merge()
        self.fuse = nn.ModuleList(conv_norm_relu(2 * width, width, kernel=1) for width in (8, 16, 32))

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(torch.cat(x.chunk(2, 1)))
        return self.decoder(*(fuse(torch.cat(f.chunk(2), 1)) for fuse, f in zip(self.fuse, features, strict=True)))


class TwoStreams(nn.Module):
    """Two modalities with an encoder each, brought together at the bottleneck by a module or by a function."""

    def __init__(self, by_module: bool) -> None:
        super().__init__()
        self.color, self.depth = Stages(), Stages(1)
        self.fusion = conv_norm_relu(64, 32, kernel=1) if by_module else None
        self.decoder = Merge()

    def forward(self, x: Tensor) -> Tensor:
        *skips, color = self.color(x[:, :3])
        *more, depth = self.depth(x[:, 3:])
        z = torch.maximum(color, depth) if self.fusion is None else self.fusion(torch.cat([color, depth], 1))
        return self.decoder(*(a + b for a, b in zip(skips, more, strict=True)), z)


# Recurrence, volumes and signals ------------------------------------------------------------------------------------


class RecurrentBlock(nn.Module):
    """Calls its convolution several times, on its input and its own last result."""

    def __init__(self, inputs: int, outputs: int, steps: int = 2) -> None:
        super().__init__()
        self.project, self.steps = nn.Conv2d(inputs, outputs, 1), steps
        self.conv = conv_norm_relu(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        y = self.conv(x)
        for _ in range(self.steps):
            y = self.conv(x + y)
        return x + y


class RecurrentUNet(nn.Module):
    """A residual U-Net of recurrent blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.rrcnn1, self.rrcnn2, self.rrcnn3 = RecurrentBlock(3, 8), RecurrentBlock(8, 16), RecurrentBlock(16, 32)
        self.maxpool, self.upsample = nn.MaxPool2d(2, 2), nn.Upsample(scale_factor=2)
        self.up2, self.up1 = conv_norm_relu(32, 16), conv_norm_relu(16, 8)
        self.up_rrcnn2, self.up_rrcnn1 = RecurrentBlock(32, 16), RecurrentBlock(16, 8)
        self.conv_1x1 = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.rrcnn1(x)
        x2 = self.rrcnn2(self.maxpool(x1))
        x3 = self.rrcnn3(self.maxpool(x2))
        y = self.up_rrcnn2(torch.cat((x2, self.up2(self.upsample(x3))), 1))
        return self.conv_1x1(self.up_rrcnn1(torch.cat((x1, self.up1(self.upsample(y))), 1)))


class LongShortTermCell(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, memory = state
        i, f, o, g = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        return o.sigmoid() * memory.tanh(), memory


class RecurrentBottleneck(nn.Module):
    """A convolutional LSTM thinks over the code in some steps; of its last state, only the first half is read."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell, self.decoder = Stages(), LongShortTermCell(32), Merge()

    def forward(self, x: Tensor) -> Tensor:
        *skips, z = self.encoder(x)
        state = torch.zeros_like(z), torch.zeros_like(z)
        for _ in range(3):
            state = self.cell(z, state)
        return self.decoder(*skips, state[0])


class ResidualStage3d(nn.Module):
    def __init__(self, inputs: int, outputs: int, change: type[nn.Module], layers: int) -> None:
        super().__init__()
        self.change = change(inputs, outputs, 2, stride=2)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv3d(outputs, outputs, 5, padding=2), nn.PReLU(outputs)) for _ in range(layers))
        )

    def forward(self, x: Tensor, skip: Tensor | float = 0.0) -> Tensor:
        x = F.elu(self.change(x)) + skip
        return self.layers(x) + x


class VNet(nn.Module):
    """Volumes, residual stages, learned downsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.in_tr = nn.Conv3d(1, 4, 5, padding=2)
        self.down_tr1, self.down_tr2 = ResidualStage3d(4, 8, nn.Conv3d, 1), ResidualStage3d(8, 16, nn.Conv3d, 2)
        self.up_tr2 = ResidualStage3d(16, 8, nn.ConvTranspose3d, 1)
        self.up_tr1 = ResidualStage3d(8, 4, nn.ConvTranspose3d, 1)
        self.out_tr = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.in_tr(x)
        x2 = self.down_tr1(x1)
        x = self.up_tr2(self.down_tr2(x2), x2)
        return self.out_tr(self.up_tr1(x, x1))


class AnisotropicUNet(nn.Module):
    """Thick slices: the first level pools within slices only."""

    def __init__(self) -> None:
        super().__init__()
        strides = ((1, 2, 2), (2, 2, 2))
        self.enc1, self.enc2, self.bottom = self.block(1, 4, 1), self.block(4, 8, 3), self.block(8, 16, 3)
        self.pools = nn.ModuleList(nn.MaxPool3d(stride) for stride in strides)
        self.up2 = nn.ConvTranspose3d(16, 8, strides[1], strides[1])
        self.up1 = nn.ConvTranspose3d(8, 4, strides[0], strides[0])
        self.dec2, self.dec1, self.out = self.block(16, 8, 3), self.block(8, 4, 1), nn.Conv3d(4, 2, 1)

    @staticmethod
    def block(inputs: int, outputs: int, deep: int) -> nn.Sequential:
        conv = nn.Conv3d(inputs, outputs, (deep, 3, 3), padding=(deep // 2, 1, 1))
        return nn.Sequential(conv, nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.enc2(self.pools[0](a))
        y = self.up2(self.bottom(self.pools[1](b)))
        y = self.up1(self.dec2(torch.cat([y, b], 1)))
        return self.out(self.dec1(torch.cat([y, a], 1)))


class SignalUNet(nn.Module):
    """Segments a signal in time."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.bottom = self.block(1, 8, 1), self.block(8, 16, 4), self.block(16, 32, 4)
        self.up2, self.up1 = nn.ConvTranspose1d(32, 16, 4, 4), nn.ConvTranspose1d(16, 8, 4, 4)
        self.dec2, self.dec1, self.out = self.block(32, 16, 1), self.block(16, 8, 1), nn.Conv1d(8, 3, 1)

    @staticmethod
    def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(inputs, outputs, 7, stride, 3), nn.BatchNorm1d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.enc2(a)
        y = self.dec2(torch.cat([self.up2(self.bottom(b)), b], 1))
        return self.out(self.dec1(torch.cat([self.up1(y), a], 1)))


# Tokens and channels last -------------------------------------------------------------------------------------------


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


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.token_mix = nn.LayerNorm(width), mlp(tokens, 16)
        self.norm2, self.channel_mix = nn.LayerNorm(width), mlp(width, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class Mixer(nn.Module):
    """Tokens mixed by perceptrons; the last layer writes all pixels of a patch: more channels than the code has."""

    def __init__(self, tokens: int = 24, width: int = 32, patch: int = 8) -> None:
        super().__init__()
        self.patch, self.patch_embed = patch, nn.Conv2d(3, width, patch, patch)
        self.mixer = nn.Sequential(MixerBlock(tokens, width), MixerBlock(tokens, width))
        self.to_pixels = nn.Linear(width, 2 * patch**2)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patch_embed(x)
        tokens = self.to_pixels(self.mixer(grid.flatten(2).transpose(1, 2)))
        return F.pixel_shuffle(tokens.transpose(1, 2).reshape(len(x), -1, *grid.shape[2:]), self.patch)


class PatchMerging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x.unflatten(1, size)
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.reduction(self.norm(x.flatten(1, 2)))


class PatchExpanding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.norm = nn.Linear(width, 2 * width, bias=False), nn.LayerNorm(width // 2)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.expand(x).unflatten(1, size).unflatten(3, (2, 2, -1))
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2).flatten(1, 2))


class TokenUNet(nn.Module):
    """A U-Net of tokens [B, N, C] from end to end: merging and expanding patches, skips by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 2, 2)
        self.block1, self.block2, self.bottleneck = (
            nn.Sequential(TransformerBlock(width), TransformerBlock(width)) for width in (8, 16, 32)
        )
        self.merge1, self.merge2 = PatchMerging(8), PatchMerging(16)
        self.expand2, self.expand1 = PatchExpanding(32), PatchExpanding(16)
        self.concat2, self.concat1 = nn.Linear(32, 16), nn.Linear(16, 8)
        self.up2, self.up1, self.output = TransformerBlock(16), TransformerBlock(8), nn.ConvTranspose2d(8, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        size, half, quarter = (tuple(n // stride for n in x.shape[2:]) for stride in (1, 2, 4))
        a = self.block1(x.flatten(2).transpose(1, 2))
        b = self.block2(self.merge1(a, size))
        y = self.bottleneck(self.merge2(b, half))
        y = self.up2(self.concat2(torch.cat([self.expand2(y, quarter), b], -1)))
        y = self.up1(self.concat1(torch.cat([self.expand1(y, half), a], -1)))
        return self.output(y.transpose(1, 2).unflatten(2, size))


class OverlappingEmbed(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inputs, outputs, 3, 2, 1), nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2], x.shape[3]


class ShiftedBlock(nn.Module):
    """A perceptron on tokens whose channels were shifted along an axis, with a convolution between its layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.dwconv = nn.Conv2d(width, width, 3, 1, 1, groups=width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        grid = self.norm(x).transpose(1, 2).unflatten(2, (height, width))
        grid = torch.cat([part.roll(i - 1, 2) for i, part in enumerate(grid.chunk(4, 1))], 1)
        y = self.fc1(grid.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (height, width))
        return x + self.fc2(F.gelu(self.dwconv(y)).flatten(2).transpose(1, 2))


class TokenizedUNet(nn.Module):
    """Convolutions above, tokens in the two deepest levels; the decoder's first block stands on the coarsest grid."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = conv_norm_relu(3, 8)
        self.patch_embed1, self.patch_embed2 = OverlappingEmbed(8, 16), OverlappingEmbed(16, 32)
        self.block1, self.block2 = ShiftedBlock(16), ShiftedBlock(32)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(32)
        self.decoder1, self.dbn1 = nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.decoder2, self.dbn2 = nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.final = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        t1 = F.max_pool2d(self.encoder1(x), 2)
        out, height, width = self.patch_embed1(t1)
        out = self.norm1(self.block1(out, height, width))
        t2 = out.transpose(1, 2).reshape(len(x), -1, height, width)
        out, height, width = self.patch_embed2(t2)
        out = self.norm2(self.block2(out, height, width))
        out = out.transpose(1, 2).reshape(len(x), -1, height, width)
        out = F.relu(F.interpolate(self.dbn1(self.decoder1(out)), scale_factor=2, mode="bilinear"))
        out = torch.add(out, t2)
        out = F.relu(F.interpolate(self.dbn2(self.decoder2(out)), scale_factor=2, mode="bilinear"))
        return self.final(F.interpolate(torch.add(out, t1), scale_factor=2))


class Residual(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) + x


class ConvMixer(nn.Module):
    """Patches at once, then blocks that all keep the grid."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.GELU(), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(*(self.block(width) for _ in range(3)))
        self.head = nn.Sequential(nn.ConvTranspose2d(width, 8, 4, 4), nn.GELU(), nn.ConvTranspose2d(8, 2, 2, 2))

    @staticmethod
    def block(width: int) -> nn.Sequential:
        spatial = nn.Conv2d(width, width, 5, groups=width, padding=2)
        return nn.Sequential(
            Residual(nn.Sequential(spatial, nn.GELU(), nn.BatchNorm2d(width))), nn.Conv2d(width, width, 1), nn.GELU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))  # logits at half the size


# Bottlenecks and outputs of other kinds -----------------------------------------------------------------------------


class TaskOutput(NamedTuple):
    logits: Tensor
    presence: Tensor


class WithClassifier(nn.Module):
    """A second head tells from the pooled bottleneck which classes are there."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stages(), Merge()
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Flatten(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> TaskOutput:
        features = self.encoder(x)
        return TaskOutput(self.decoder(*features), self.classifier(self.pool(features[-1])))


class DeeplySupervised(nn.Module):
    """A list of logits, coarser and coarser, in train mode; one tensor in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.bottom = double_conv(3, 8), double_conv(8, 16), double_conv(16, 32)
        self.dec2, self.dec1 = double_conv(48, 16), double_conv(24, 8)
        self.out1, self.out2, self.out3 = nn.Conv2d(8, 2, 1), nn.Conv2d(16, 2, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        a = self.enc1(x)
        b = self.enc2(F.avg_pool2d(a, 2))
        z = self.bottom(F.avg_pool2d(b, 2))
        y2 = self.dec2(torch.cat([up_to(z, b), b], 1))
        y1 = self.dec1(torch.cat([up_to(y2, a), a], 1))
        return [self.out1(y1), self.out2(y2), self.out3(z)] if self.training else self.out1(y1)


class TwoDecoders(nn.Module):
    """Segments, and reconstructs the image from the same features, to learn without labels too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.segment, self.reconstruct = Stages(), Merge(), Merge(classes=3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(x)
        return {"reconstruction": self.reconstruct(*features), "segmentation": self.segment(*features)}


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


class Modulated(nn.Module):
    """A small network sees the image as a whole, on a coarser grid, and scales and shifts the channels of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stages(), Merge()
        self.context = nn.Sequential(*(conv_norm_relu(a, b, stride=2) for a, b in ((3, 8), (8, 8), (8, 16), (16, 32))))
        self.condition = nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.condition(self.context(x).mean((2, 3)))[:, :, None, None].chunk(2, 1)
        *skips, z = self.encoder(x)
        return self.decoder(*skips, z * (1 + scale) + shift)


class Localised(nn.Module):
    """A localisation network tells where to look, on a coarser grid than the U-Net behind it ever has."""

    def __init__(self) -> None:
        super().__init__()
        self.localise = nn.Sequential(
            conv_norm_relu(3, 8, stride=2), nn.MaxPool2d(2), conv_norm_relu(8, 16, stride=2), nn.MaxPool2d(2)
        )
        self.pose, self.unet = nn.Linear(16 * 2 * 3, 6), FunctionalUNet()

    def forward(self, x: Tensor) -> Tensor:
        straight = torch.eye(2, 3, device=x.device, dtype=x.dtype)
        pose = straight + 0.1 * self.pose(self.localise(x).flatten(1)).unflatten(1, (2, 3)).tanh()
        grid = F.affine_grid(pose, list(x.shape), align_corners=False)
        return self.unet(F.grid_sample(x, grid, align_corners=False))


class FlowAlignment(nn.Module):
    """Moves a coarse map so that it fits a finer one, along a learned flow."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.down_fine, self.down_coarse = nn.Conv2d(fine, 8, 1), nn.Conv2d(coarse, 8, 1)
        self.flow = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        both = torch.cat([self.down_fine(fine), up_to(self.down_coarse(coarse), fine)], 1)
        straight = torch.eye(2, 3, device=fine.device, dtype=fine.dtype).expand(len(fine), 2, 3)
        grid = F.affine_grid(straight, list(fine.shape), align_corners=False)
        grid = grid + self.flow(both).permute(0, 2, 3, 1) * 0.1
        return F.grid_sample(coarse, grid, mode="bilinear", align_corners=False)


class AlignedUNet(nn.Module):
    """Upsampling by `grid_sample`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = BasicBlock(3, 8, 2), BasicBlock(8, 16, 2), BasicBlock(16, 32, 2)
        self.align2, self.align1 = FlowAlignment(16, 32), FlowAlignment(8, 16)
        self.conv2, self.conv1, self.out = conv_norm_relu(48, 16), conv_norm_relu(24, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        c1 = self.layer1(x)
        c2 = self.layer2(c1)
        c3 = self.layer3(c2)
        y = self.conv2(torch.cat([self.align2(c2, c3), c2], 1))
        y = self.conv1(torch.cat([self.align1(c1, y), c1], 1))
        return up_to(self.out(y), x)


class ShuffledUNet(nn.Module):
    """Sizes change by rearranging pixels: up means a convolution to four times the channels, on the coarser grid."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = conv_norm_relu(12, 16), conv_norm_relu(64, 32)
        self.bottom = double_conv(128, 32)
        self.expand3, self.expand2, self.expand1 = (nn.Conv2d(n, 64, 1) for n in (32, 48, 32))
        self.out = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(F.pixel_unshuffle(x, 2))
        b = self.enc2(F.pixel_unshuffle(a, 2))
        y = F.pixel_shuffle(self.expand3(self.bottom(F.pixel_unshuffle(b, 2))), 2)
        y = F.pixel_shuffle(self.expand2(torch.cat([y, b], 1)), 2)
        return self.out(F.pixel_shuffle(self.expand1(torch.cat([y, a], 1)), 2))


class WaveletUNet(nn.Module):
    """Down by Haar's wavelet, up by its inverse, both of them functions of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.haar: Tensor
        low, high = torch.tensor([1.0, 1.0]) / 2**0.5, torch.tensor([1.0, -1.0]) / 2**0.5
        self.register_buffer(
            "haar", torch.stack([torch.outer(a, b) for a in (low, high) for b in (low, high)])[:, None]
        )
        self.enc1, self.enc2, self.bottom = double_conv(3, 8), double_conv(32, 16), double_conv(64, 64)
        self.dec2, self.dec1, self.out = double_conv(32, 32), double_conv(16, 8), nn.Conv2d(8, 2, 1)

    def down(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.haar.repeat(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])

    def up(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.haar.repeat(x.shape[1] // 4, 1, 1, 1), stride=2, groups=x.shape[1] // 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.enc2(self.down(a))
        y = self.up(self.bottom(self.down(b)))
        y = self.up(self.dec2(torch.cat([y, b], 1)))
        return self.out(self.dec1(torch.cat([y, a], 1)))


# Around other networks ----------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """What training frameworks make of a network: a module that calls it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Resizing(nn.Module):
    """Works on images of one size: resizes and normalises what comes, in place, and resizes the logits back."""

    def __init__(self, net: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.net, self.size = net, size
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor([0.1, 0.0, -0.1])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        resized = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        resized.sub_(self.mean).div_(2.0)
        return up_to(self.net(resized), x)


class Padding(nn.Module):
    """Pads images to a size that can be halved often enough, and crops the logits."""

    def __init__(self, net: nn.Module, multiple: int) -> None:
        super().__init__()
        self.net, self.multiple = net, multiple

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="reflect")
        return self.net(padded)[:, :, :height, :width]


class MixedPrecision(nn.Module):
    """Enters autocast by itself, so that its codes have fewer digits than what surrounds it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = self.net(x)
        return logits.to(x.dtype)


class OnFeatures(nn.Module):
    """A decoder of one's own on somebody else's list of features, which may hold its channels last."""

    def __init__(self, encoder: nn.Module, widths: tuple[int, ...], channels_last: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder, self.channels_last = encoder, Merge(widths, classes=3), channels_last

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        if self.channels_last:
            features = [f.permute(0, 3, 1, 2) for f in features]
        return up_to(self.decoder(*features), x)
