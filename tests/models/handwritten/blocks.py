"""U-Nets whose blocks are residual, dense or of several sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.parts import BasicBlock, conv_norm_relu


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
