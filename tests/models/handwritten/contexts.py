"""Contexts, pyramids and parallel branches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.parts import BasicBlock, Merge, Stages, conv_norm_relu, double_conv, up_to


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
