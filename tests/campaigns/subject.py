"""What operations are done to: a small model with state of all kinds, which raises on demand; and batches for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentaug.tap.latent_tap import LatentTap
from tests.campaigns.memory import Remembering

PATIENCE = 20.0  # seconds for a thread that ought to be done at once


class Fault(Exception):
    """Raised where a rule wants it."""


class Alarm:
    """Raises in a module's pass, of batches of some size, for as long as it is armed."""

    def __init__(self) -> None:
        self.at: tuple[str, int, type[BaseException]] | None = None

    def __deepcopy__(self, memo: Any) -> Alarm:
        return self


ALARM = Alarm()


class Alarmed(nn.Module):
    """A module that raises when the alarm is armed for it."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.name, self.inner = name, inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if ALARM.at is not None and ALARM.at[:2] == (self.name, len(x)):
            raise ALARM.at[2](self.name)
        return y


class Subject(nn.Module):
    """A small U-Net with state of all kinds, in mixed modes."""

    def __init__(self, memory: str) -> None:
        super().__init__()
        self.stem = Alarmed("stem", nn.utils.spectral_norm(nn.Conv2d(1, 4, 3, padding=1)))
        self.norm, self.instance = nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)
        self.code = Alarmed("code", nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(inplace=True)))
        self.memory = Remembering(memory)
        self.up, self.drop = Alarmed("up", nn.ConvTranspose2d(6, 4, 2, 2)), nn.Dropout(0.3)
        self.head = nn.Conv2d(4, 2, 1)
        self.instance.weight_decay = 0.1  # an attribute of the user's

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.norm(self.stem(x)))
        z = self.memory(self.code(F.dropout(a, 0.1, self.training)))
        b = self.drop(self.up(z)) * 1.0
        b += a
        return self.head(self.instance(b))


def images(seed: int, size: int = 3) -> Tensor:
    """Draw a batch; the same for the same seed."""
    return torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def labels(seed: int, size: int = 3) -> Tensor:
    """Draw label maps; the same for the same seed."""
    return torch.randint(2, (size, 8, 8), generator=torch.Generator().manual_seed(seed))


def holding(model: nn.Module, layer: str) -> Iterator[Any]:
    """Hold a tap open between one step of a generator and the next."""
    with LatentTap(model, layer) as tap:
        while True:
            yield tap


def in_thread(function: Callable[[], Any], *, patience: float = PATIENCE) -> Any:
    """Run a function in a thread of its own; return what it returns, or raise what it raises."""
    done: list[Any] = []

    def run() -> None:
        try:
            done.append((True, function()))
        except BaseException as error:
            done.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(patience)
    assert not thread.is_alive(), "a thread waits for ever"
    right, result = done[0]
    if not right:
        raise result
    return result
