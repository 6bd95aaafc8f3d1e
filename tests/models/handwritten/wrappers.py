"""What stands around somebody else's network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.handwritten.parts import Merge, up_to


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
