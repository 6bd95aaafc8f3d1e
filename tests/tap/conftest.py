"""A U-Net, and images for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.unet import UNet, unet


@pytest.fixture
def model() -> UNet:
    return unet()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
