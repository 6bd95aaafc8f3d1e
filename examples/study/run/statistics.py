"""Running statistics of batch normalisation, renewed once training has ended."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

BATCHES = 50
"""How many training batches they are the mean of."""


def renew_statistics(network: nn.Module, batches: Iterable[Tensor], device: torch.device, precision: str) -> None:
    """Replace running statistics by their mean over batches; weights stay as they are.

    As training leaves them they are a moving average, in which the last ten batches have two thirds of the weight. With
    batches of two different images that is a matter of chance, and so is what a network then scores (Wu and Johnson,
    2021, arXiv:2105.07576). Layers without running statistics stay as they are.

    Args:
        network: The user's network, without the heads beside it.
        batches: Images like those of tests: those of training, before what `--augment` makes of them.
        device: Where it is.
        precision: That of the training.

    Shape:
        each of batches: [B, C, *S].
    """
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        update_bn(batches, network, device)
