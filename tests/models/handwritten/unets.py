"""U-Nets, and the ways in which people write their levels."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.parts import conv_norm_relu, double_conv, up_to


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
