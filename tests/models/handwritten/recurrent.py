"""Blocks and cells that are called step by step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.handwritten.parts import Merge, Stages, conv_norm_relu


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
