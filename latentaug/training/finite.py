"""Batches whose images, losses or gradients are not finite: kept out of the weights, and named.

Where the numbers are on the CPU they are looked at, and such a batch is as if it had never been drawn. Elsewhere
looking would make the host wait for the device at every step. There the device itself decides: it fills the gradient of
such a batch with zeros and puts the buffers back, and it sends word, which the host reads when it has come.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from latentaug import ranks
from latentaug.tracing.isolation import submodules
from latentaug.tracing.keeping import local
from latentaug.training.plain import plain_tensor

logger = logging.getLogger(__name__)


_MOST = 64
"""Batches of which no word has come, after which the host waits for it."""


class NotFiniteError(RuntimeError):
    """Too many batches in a row came out infinite or not a number."""


class Seen(NamedTuple):
    """What was not finite in a batch."""

    epoch: int
    batch: int
    lost: list[str]


class FiniteGuard:
    """Keep what is not finite out of a training.

    Args:
        max_skipped: Batches in a row after which `check` raises.
        advice: What may help, in whole sentences.
    """

    def __init__(self, max_skipped: int = 10, advice: str = "Lower the learning rate, or clip gradients.") -> None:
        self.max_skipped = max_skipped
        self._advice = advice
        self.skipped = 0
        """Batches so far."""
        self._in_a_row = 0
        self._epoch: dict[str, None] = {}  # what was lost in the running epoch; a dictionary keeps the order
        self._in_epoch = 0
        self._told = False
        self._last: Seen | None = None
        self._under_way: deque[tuple[int, int, list[str], Tensor, Any]] = deque()

    def begin(self) -> None:
        """Count batches in a row anew: another fit begins."""
        self._in_a_row = 0

    def lost(self, images: Tensor, labels: Tensor) -> list[str]:
        """Name which of images and labels are not finite, before a model sees them, where one may look."""
        inputs = {"images": images, "labels": labels}
        return [name for name, one in inputs.items() if may_look(one) and not _read(all_finite(one))]

    def refuse(self, epoch: int, batch: int, lost: list[str]) -> None:
        """Take note of a batch that no model sees."""
        self._note(Seen(epoch, batch, lost))

    def note(self, epoch: int, batch: int, flags: Mapping[str, Tensor], finite: Tensor) -> bool | None:
        """Take the flags of a batch; return whether it was finite, or None where one can't look yet."""
        if is_readable(finite):
            if _read(finite):
                self._in_a_row = 0
                return True
            lost = [name for name, flag in flags.items() if not _read(flag)]
            self._note(Seen(epoch, batch, lost or ["something on another rank"]))
            return False
        sent, arrived = _send(torch.stack([*flags.values(), finite]))
        self._under_way.append((epoch, batch, list(flags), sent, arrived))
        self._take(wait=False)
        return None

    @property
    def has_enough(self) -> bool:
        """Whether too many batches in a row were not finite, as far as is known."""
        return self._in_a_row >= self.max_skipped

    def check(self, images: Tensor | None = None) -> None:
        """Stop a training, as `stop` does, once there are enough; for loops that agree on nothing between their steps.

        Args:
            images: Of the batch that was noted last. Where ranks can't look at them, they know at different times; so
                they wait for the end of the epoch, which None stands for.
        """
        if self.has_enough and (images is None or is_readable(images) or not ranks.several()):
            self.stop()

    def stop(self) -> None:
        """Stop a training, as too many batches in a row were not finite.

        Raises:
            NotFiniteError: Always.
        """
        self._take(wait=True)  # word that has come to another rank first
        epoch, batch, lost = self._last or Seen(0, 0, ["something on another rank"])
        raise NotFiniteError(
            f"Training stopped: {max(self._in_a_row, self.max_skipped)} batches in a row were not finite, the last of "
            f"them batch {batch} of epoch {epoch} ({', '.join(lost)}). The weights are those before the first of "
            f"these. Look at the data. {self._advice}"
        )

    def end_epoch(self, epoch: int, batches: int) -> None:
        """Say what was skipped in an epoch, unless it was said of the epoch before."""
        self._take(wait=True)
        if self._in_epoch and not self._told:
            logger.warning(
                "Epoch %d: %s came out infinite or not a number in %d of %d batches, which were skipped. Look at these "
                "batches. %s",
                epoch,
                ", ".join(self._epoch),
                self._in_epoch,
                batches,
                self._advice,
            )
        self._told = self._in_epoch > 0
        self._epoch, self._in_epoch = {}, 0

    def _take(self, *, wait: bool) -> None:
        """Read the flags that have come; or wait for all."""
        while self._under_way and (wait or len(self._under_way) > _MOST or self._under_way[0][4].query()):
            epoch, batch, names, sent, arrived = self._under_way.popleft()
            arrived.synchronize()
            *flags, finite = sent.tolist()
            if finite:
                self._in_a_row = 0
            else:
                lost = [name for name, flag in zip(names, flags, strict=True) if not flag]
                self._note(Seen(epoch, batch, lost or ["something on another rank"]))

    def _note(self, seen: Seen) -> None:
        self._last = seen
        self.skipped += 1
        self._in_a_row += 1
        self._in_epoch += 1
        self._epoch |= dict.fromkeys(seen.lost)
        if self.skipped <= 3 or self.skipped & (self.skipped - 1) == 0:  # the first ones, then ever more rarely
            logger.warning(
                "Skipped batch %d (counted from 0) of epoch %d: not finite were %s. Skipped so far: %d.",
                seen.batch,
                seen.epoch,
                ", ".join(seen.lost),
                self.skipped,
            )


class Watched:
    """One batch on its way through a model.

    Args:
        guard: Whom to tell.
        model: Whose buffers and gradients are put back where need be.
        accumulated: Whether there may be gradients of earlier batches.
        scaler: Scales the losses, if it is enabled, and has its own way with gradients that are not finite then.
    """

    def __init__(
        self, guard: FiniteGuard, model: nn.Module, *, accumulated: bool, scaler: torch.amp.GradScaler | None
    ) -> None:
        self._guard, self._model = guard, model
        self._gradients = scaler is None or not scaler.is_enabled()
        self._buffers = KeptBuffers(model)
        there = [
            (id(one), local(one.grad).clone()) for one in model.parameters() if accumulated and one.grad is not None
        ]
        self._before = dict(there)

    def settle(self, epoch: int, batch: int, images: Tensor | None, losses: Mapping[str, Tensor]) -> Tensor | bool:
        """See whether the batch was finite; if not, let it leave no trace in gradients and buffers.

        Args:
            epoch: Which one it is of.
            batch: Its number there.
            images: Its images; None where these were looked at before.
            losses: Its losses.

        Returns:
            Whether it was: a truth value where one may look, else one on the device.
        """
        flags = {name: loss.isfinite().all() for name, loss in losses.items()}
        if images is not None:
            flags = {"images": all_finite(plain_tensor(images)), **flags}
        changed = _with_gradient(self._model)
        if self._gradients:
            flags["gradient"] = gradients_finite(changed, next(iter(flags.values())).device)
        finite = torch.stack(list(flags.values())).all()
        if ranks.several():
            agreed = finite.to(torch.int32)
            distributed.all_reduce(agreed, op=distributed.ReduceOp.MIN)
            finite = agreed.bool()
        known = self._guard.note(epoch, batch, flags, finite)
        if known is True:
            return True
        self._buffers.put_back(None if known is False else finite)
        for parameter in changed:
            assert parameter.grad is not None
            gradient = local(parameter.grad)
            with torch.no_grad():
                if (before := self._before.get(id(parameter))) is not None:
                    gradient.copy_(before if known is False else torch.where(finite, gradient, before))
                elif known is False:
                    parameter.grad = None
                else:
                    gradient.masked_fill_(~finite, 0)
        return False if known is False else finite


class KeptBuffers:
    """The buffers of a model as they were, in few and large copies."""

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (module._buffers, name, value)
            for module in submodules(model)
            for name, value in module._buffers.items()
            if value is not None and type(value) in (Tensor, nn.Parameter) and not value.is_meta
        ]
        kinds: dict[Any, list[Tensor]] = {}
        for _, _, value in self._places:
            kinds.setdefault((value.dtype, value.device), []).append(value)
        self._kinds = [(held, torch.cat([one.detach().reshape(-1) for one in held])) for held in kinds.values()]

    def put_back(self, unless: Tensor | None) -> None:
        """Put them back; with `unless`, only where it is false, which the device decides."""
        new: dict[int, Tensor] = {}
        for buffers, name, value in self._places:  # some may have been replaced
            current = buffers[name]
            if current is not None and current is not value and current.shape == value.shape:
                new[id(value)] = current
            buffers[name] = value
        with torch.no_grad():
            for held, copy in self._kinds:
                if unless is not None:
                    now = torch.cat([new.get(id(one), one).detach().reshape(-1) for one in held])
                    copy = torch.where(unless.to(copy.device), now, copy)
                parts = copy.split([one.numel() for one in held])
                for one, part in zip(held, parts, strict=True):
                    once = tuple(slice(None) if step else slice(1) for step in one.stride())  # of what is expanded
                    one[once].copy_(part.view_as(one)[once])


def is_readable(tensor: Tensor) -> bool:
    """Tell whether a tensor can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"


def may_look(tensor: Tensor) -> bool:
    """Tell whether a batch can be looked at by itself: neither the device nor another rank is waited for."""
    return is_readable(tensor) and not ranks.several()


def all_finite(tensor: Tensor) -> Tensor:
    """Return whether all numbers are finite, on the tensor's device."""
    if not tensor.is_floating_point():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    return tensor.isfinite().all()


def has_gradient(model: nn.Module) -> bool:
    """Tell whether there is anything to step along: not so where each batch was left out."""
    return bool(_with_gradient(model))


def gradients_finite(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Return whether all gradients are finite, on the device and in few operations.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.tensor([1.0, float("nan")])
        >>> gradients_finite([weight], torch.device("cpu"))
        tensor(False)
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    dense = [one.coalesce().values() if one.is_sparse else one.detach() for one in gradients]
    dense = [local(one) for one in dense]
    dense = [one for one in dense if one.numel()]
    if not dense:
        return torch.ones((), dtype=torch.bool, device=device)
    largest = torch._foreach_norm(dense, float("inf"))  # NaN where one is
    wide = torch.float64 if any(one.dtype == torch.float64 for one in largest) else torch.float32
    return torch.stack([one.to(device, wide) for one in largest]).isfinite().all()


def weights_finite(model: nn.Module) -> bool:
    """Tell whether all weights and buffers of a model are finite, on all ranks; the host waits for them."""
    values = [local(value) for value in (*model.parameters(), *model.buffers()) if not value.is_meta]
    (lost,) = ranks.largest("weights that are not finite", not all(bool(all_finite(value)) for value in values))
    return not lost


def _with_gradient(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.grad is not None]


def _read(flag: Tensor) -> bool:
    return bool(flag.numpy())  # of a tensor on the CPU, whose values are there


class _Arrived:
    """Stands for an event where there are none: what was sent has arrived."""

    def query(self) -> bool:
        return False  # which is seen at the end of an epoch

    def synchronize(self) -> None:
        pass


def _send(flags: Tensor) -> tuple[Tensor, Any]:
    """Send flags to the host, without waiting for them; return what they arrive in, and what tells that they have."""
    if flags.device.type != "cuda":
        return flags, _Arrived()
    sent = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    sent.copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return sent, arrived
