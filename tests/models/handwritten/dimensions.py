"""Volumes and signals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
