"""Several codes on the coarsest grid, of which one is better than the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.parts import conv
from tests.models.searched.parts import Net


class DeadEnd(nn.Module):
    """Returns a code that nobody reads beside one that is read; both of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = conv(3, 32, 4), nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = self.body(x)
        return self.norm(hidden), [hidden]


class ReadsTheFirst(nn.Module):
    """Reads the first of the two."""

    def __init__(self) -> None:
        super().__init__()
        self.vit, self.decoder = DeadEnd(), nn.Sequential(nn.Upsample(scale_factor=4), conv(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.vit(x)[0])


class Narrowing(nn.Module):
    """An autoencoder whose code is the narrowest: nothing goes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 16, 2), conv(16, 8, 2), conv(8, 4, 2)
        self.up, self.head = nn.Upsample(scale_factor=8), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.third(F.relu(self.second(F.relu(self.first(x)))))))


class SharedRelu(nn.Module):
    """One activation for encoder and decoder: what a tap on it takes is the last call's."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.relu = conv(3, 8, 2), conv(8, 16, 2), nn.ReLU()
        self.up1, self.up2 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = self.relu(self.down2(self.relu(self.down1(x))))
        return self.up2(self.relu(self.up1(code)))


class PooledLast(nn.Module):
    """Convolves, then pools; the block on the coarsest grid is narrower than what was pooled, as in a Tiramisu."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(conv(3, 40), nn.MaxPool2d(2))
        self.block, self.up, self.head = conv(40, 24), nn.ConvTranspose2d(24, 24, 2, 2), conv(27, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.up(self.block(self.down(x))), x], 1))


class SubPixel(nn.Module):
    """Goes up by rearranging channels, of which there have to be four times as many."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom, self.expand, self.head = conv(3, 16, 2), conv(16, 16), conv(16, 64), conv(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pixel_shuffle(self.expand(self.bottom(self.down(x))), 2))


class CutOff(Net):
    """The encoder is frozen by running it without a graph."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            *skips, code = self.encoder(x)
        code = code.detach()
        for up in (self.up1, self.up2):
            code = F.relu(up(code)) + skips.pop()
        return self.head(code)


class Labels(Net):
    """Labels in eval mode, logits in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.training else logits.argmax(1)
