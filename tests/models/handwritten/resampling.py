"""Sizes and grids that change in other ways than by strides and interpolation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.parts import BasicBlock, conv_norm_relu, double_conv, up_to
from tests.models.handwritten.unets import FunctionalUNet


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
