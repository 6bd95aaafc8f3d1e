"""Coarser grids that are not the code's: pooled contexts, keys and values, networks beside the main one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.parts import conv
from tests.models.searched.parts import Encoder, Net


class PyramidPooling(nn.Module):
    """Pools to fixed bins with functions, convolves there, and adds what comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        for bins, pointwise in zip((1, 2), self.convs, strict=True):
            x = x + F.interpolate(pointwise(F.adaptive_avg_pool2d(x, bins)), size)
        return x


class KeysAndValues(nn.Module):
    """Attention whose keys and values are coarser than the code."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.query = nn.Conv2d(32, 32, 2, 2), nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, kv = self.query(x).flatten(2).mT, self.reduce(x).flatten(2).mT
        return x + ((q @ kv.mT).softmax(-1) @ kv).mT.unflatten(2, x.shape[2:])


class Attention(nn.Module):
    """Residual attention whose values, made last, are as wide as the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.query, self.key, self.value = (nn.Conv2d(32, channels, 1) for channels in (8, 8, 32))
        self.head = conv(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder(x)[-1]
        scores = self.query(code).flatten(2).mT @ F.max_pool2d(self.key(code), 4).flatten(2)
        values = F.max_pool2d(self.value(code), 4).flatten(2).mT
        return F.interpolate(
            self.head(code + (scores.softmax(-1) @ values).mT.unflatten(2, code.shape[2:])), x.shape[2:]
        )


class SmallUInTheDecoder(nn.Module):
    """A detour to a coarser grid, behind the code."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(32, 32, 2), nn.ConvTranspose2d(32, 32, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x)).sigmoid()


class ContextBehind(nn.Module):
    """Strided poolings behind the code, each narrowed at once: context for a decoder, as DAPPM and PAN compute it."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.AvgPool2d(stride, stride) for stride in (2, 4))
        self.narrow = nn.ModuleList(nn.Conv2d(32, 8, 1) for _ in range(2))
        self.merge = nn.Conv2d(48, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [narrow(pool(x)) for pool, narrow in zip(self.pools, self.narrow, strict=True)]
        return self.merge(torch.cat([x, *(F.interpolate(branch, x.shape[2:]) for branch in branches)], 1))


class Flat(nn.Module):
    """Encoder, a branch behind it and decoder, all side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.enc3 = conv(3, 8, 2), conv(8, 16, 2), conv(16, 32, 2)
        self.context = ContextBehind()
        self.pool, self.thin = nn.MaxPool2d(2), nn.Conv2d(32, 4, 1)
        self.head = conv(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = self.enc3(F.relu(self.enc2(F.relu(self.enc1(x)))))
        thin = F.interpolate(self.thin(self.pool(code)), code.shape[2:])
        return F.interpolate(self.head(torch.cat([self.context(code), thin], 1)), x.shape[2:])


class Modulated(nn.Module):
    """A network sees the image on a coarser grid, is pooled to a vector, and scales the channels of the code."""

    def __init__(self, pool: bool) -> None:
        super().__init__()
        self.context = nn.Sequential(conv(3, 16, 4), nn.ReLU(), conv(16, 64, 4))
        self.net, self.pool = Net(Encoder(), Scaled()), nn.AdaptiveAvgPool2d(1) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        context = self.context(x)
        self.net.middle.scale = context.mean((2, 3)) if self.pool is None else self.pool(context).flatten(1)
        return self.net(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear(self.scale)[:, :, None, None]
