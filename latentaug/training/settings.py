"""What an optimizer and a schedule were asked for, so that a resumed training says, and is told, whose wish counts."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from latentaug.training.plain import NotPlainError, plain, without_code

_MOVING = {"last_epoch", "_last_lr", "_step_count", "_get_lr_called_within_step", "base_lrs", "best", "num_bad_epochs"}
"""What schedulers hold that isn't asked for, but follows from the rate or moves with training."""

_OF_SCHEDULERS = {"lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}
"""Options of a group that a scheduler sets when it is built."""

_OF_PLATEAUS = ("factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lrs", "eps")


class Wish(NamedTuple):
    """A setting that was asked for otherwise when a checkpoint was written."""

    name: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} ({self.then!r} in the checkpoint, {self.now!r} in this call)"


class Asked:
    """What an optimizer and its scheduler were made with; to be called before the first update.

    Args:
        optimizer: The optimizer.
        before: Its groups before the scheduler was built.
        scheduler: The scheduler, if any.
    """

    def __init__(self, optimizer: Optimizer, before: list[dict[str, Any]], scheduler: LRScheduler | None) -> None:
        self.options = [_options(group) for group in before]
        for options, group in zip(self.options, before, strict=True):
            if "initial_lr" in group:  # a scheduler that was built elsewhere has changed the rate already
                options["lr"] = group["initial_lr"]
        self._groups = [
            {key: value for key, value in group.items() if key in _OF_SCHEDULERS or key not in earlier}
            for group, earlier in zip(optimizer.param_groups, before, strict=True)
        ]
        for group in self._groups:
            group.pop("params", None)
        self._schedule = None if scheduler is None else copy.deepcopy(without_code(scheduler.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data; what cannot be told apart is left out."""
        state = self._schedule or {}
        schedule = _plain({key: value for key, value in state.items() if key not in _MOVING})
        return {"optimizer": [_plain(options) for options in self.options], "scheduler": schedule}

    def differences(self, then: Mapping[str, Any] | None) -> list[Wish]:
        """Return which settings of a checkpoint are others than in this call; none of a checkpoint without them."""
        return [] if then is None else [*_different(then, self.state_dict())]

    def apply(
        self,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        state: Mapping[str, Any] | None,
        then: Mapping[str, Any] | None,
        override: Collection[str],
    ) -> None:
        """Load a scheduler's state into it, and put the settings of this call in the place of those overridden.

        Args:
            optimizer: The optimizer, with the state of the checkpoint.
            scheduler: The scheduler.
            state: Its state in the checkpoint.
            then: What was asked for when the checkpoint was written.
            override: Whose settings to take from this call: "optimizer", "optimizer.<option>", "scheduler".
        """
        rates = []  # of this call, relative to those that the checkpoint's training began with
        for index, (group, options) in enumerate(zip(optimizer.param_groups, self.options, strict=True)):
            earlier = _rate_then(then, index, group)
            rates.append(float(options["lr"]) / earlier if earlier else 1.0)
            for key in options.keys() - {"lr"}:
                if overrides(override, f"optimizer.{key}"):
                    group[key] = copy.copy(options[key])
        of_rates = overrides(override, "optimizer.lr")
        if scheduler is None or state is None:
            if of_rates:
                for group, options in zip(optimizer.param_groups, self.options, strict=True):
                    _set_rate(group, float(options["lr"]))
            return
        if "scheduler" in override and not isinstance(scheduler, ReduceLROnPlateau):
            self._fast_forward(optimizer, scheduler, int(state["last_epoch"]))
            rates = [1 / rate if rate else 1.0 for rate in rates]  # which now start from this call's
            of_rates = not of_rates
        else:
            own = {name: getattr(scheduler, name, None) for name in _OF_PLATEAUS}
            scheduler.load_state_dict(dict(state))
            if "scheduler" in override:
                vars(scheduler).update({name: value for name, value in own.items() if value is not None})
        if of_rates:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                _set_rate(group, float(group["lr"]) * rate)
                if "initial_lr" in group:
                    group["initial_lr"] *= rate
            _scale(scheduler, rates)

    def _fast_forward(self, optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> None:
        """Bring the schedule of this call to where training is."""
        for group, fresh in zip(optimizer.param_groups, self._groups, strict=True):
            rate = fresh.get("lr")
            group.update({key: value for key, value in fresh.items() if key != "lr"})
            if rate is not None:
                _set_rate(group, float(rate))
        scheduler.load_state_dict(copy.deepcopy(self._schedule or {}))
        for _ in range(steps):
            scheduler.step()


def overrides(override: Collection[str], name: str) -> bool:
    """Tell whether a setting, or all of its kind, is overridden.

    Example:
        >>> overrides(["optimizer"], "optimizer.lr"), overrides(["optimizer.lr"], "optimizer.eps")
        (True, False)
    """
    return name in override or name.partition(".")[0] in override


def check_override(override: object, asked: Asked) -> tuple[str, ...]:
    """Return the names of settings to override.

    Raises:
        ValueError: There is no setting of a name.
        TypeError: They are no collection of names.
    """
    if isinstance(override, str):
        override = (override,)
    if not isinstance(override, Collection) or not all(isinstance(name, str) for name in override):
        raise TypeError(f"override must be a list of names; got {override!r}.")
    known = ["optimizer", "scheduler", *dict.fromkeys(f"optimizer.{key}" for one in asked.options for key in one)]
    if unknown := [name for name in override if name not in known]:
        raise ValueError(f"override must name settings, of {', '.join(known)}; got {unknown}.")
    return tuple(override)


def _different(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Wish]:
    groups = list(zip(then.get("optimizer", []), now["optimizer"], strict=False))
    for index, (earlier, own) in enumerate(groups):
        for key in own:
            if key in earlier and not _same(earlier[key], own[key]):
                group = f" of group {index}" if len(groups) > 1 else ""
                yield Wish(f"optimizer.{key}{group}", earlier[key], own[key])
    earlier, own = then.get("scheduler") or {}, now["scheduler"] or {}
    for key in own:
        if key in earlier and not _same(earlier[key], own[key]):
            yield Wish(f"scheduler.{key}", earlier[key], own[key])


def _same(one: Any, other: Any) -> bool:
    return repr(_plain({"": one})) == repr(_plain({"": other}))  # so that NaN is itself, and tensors are compared


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        for key, value in group.items()
        if key == "lr" or key not in ("params", "param_names", *_OF_SCHEDULERS)
    }


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    made = {}
    for key, value in options.items():
        try:
            made[key] = plain(value, key)
        except NotPlainError:
            continue
    return made


def _rate_then(then: Mapping[str, Any] | None, index: int, group: Mapping[str, Any]) -> float:
    """Return the rate that the checkpoint's training began with."""
    if then is not None and index < len(then["optimizer"]):
        return float(then["optimizer"][index]["lr"])
    return float(group.get("initial_lr", group["lr"]))


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _scale(scheduler: LRScheduler, rates: list[float]) -> None:
    for name in ("base_lrs", "_last_lr"):
        if isinstance(own := getattr(scheduler, name, None), list) and len(own) == len(rates):
            setattr(scheduler, name, [one * rate for one, rate in zip(own, rates, strict=True)])
    for inner in getattr(scheduler, "_schedulers", []):
        _scale(inner, rates)
