"""What all studies set of a training; each has more settings of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, field
from typing import Any, ClassVar, Protocol

from study.data.frame import DataError
from study.methods.augmentations import AUGMENTATIONS
from study.methods.network import Sizes

SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16")
WEIGHTS = ("best", "last")
STATISTICS = ("kept", "renewed")
STATISTICS_HELP = "of batch normalisation, for tests: 'kept' as training ends, or 'renewed' over training batches"


class Preset(Sizes, Protocol):
    """Everything about a run, but for the data, that changes its numbers: a frozen dataclass, every field a flag."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def batch_size(self) -> int:
        """Slices per iteration."""

    @property
    def epochs(self) -> int:
        """Passes over the training slices."""

    @property
    def iterations(self) -> int | None:
        """Optimizer steps, in place of the epochs."""

    @property
    def equal_time(self) -> bool:
        """Whether there are fewer iterations by as much as one costs more than the network alone."""

    @property
    def learning_rate(self) -> float:
        """Adam's."""

    @property
    def schedule(self) -> str:
        """One of `SCHEDULES`."""

    @property
    def warm_up(self) -> int | None:
        """Iterations over which the learning rate rises."""

    @property
    def weights(self) -> str:
        """One of `WEIGHTS`."""

    @property
    def statistics(self) -> str:
        """One of `STATISTICS`."""

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`."""

    @property
    def augment(self) -> str:
        """One of `AUGMENTATIONS`."""

    @property
    def draws(self) -> int:
        """How many draws to run."""


def option(default: Any, help: str) -> Any:
    """Return a field that is a flag, with what `--help` says of it."""
    return field(default=default, metadata={"help": help})


def see_that_it_is_right(preset: Preset, wanted: Mapping[str, str]) -> None:
    """Refuse a value that is out of range.

    Args:
        preset: The settings.
        wanted: What is wrong with fields of its own: what they must be, by their names.

    Raises:
        DataError: a value is out of range.
    """
    wrong = {name: "positive" for name, value in asdict(preset).items() if not _positive(value)}
    wrong |= wanted
    if preset.batch_size % 2:
        wrong["batch_size"] = "even, since half of a batch is augmented"
    if preset.schedule not in SCHEDULES:
        wrong["schedule"] = f"one of {SCHEDULES}"
    if preset.weights not in WEIGHTS:
        wrong["weights"] = f"one of {WEIGHTS}"
    if preset.statistics not in STATISTICS:
        wrong["statistics"] = f"one of {STATISTICS}"
    if preset.precision not in PRECISIONS:
        wrong["precision"] = f"one of {PRECISIONS}"
    if preset.augment not in AUGMENTATIONS:
        wrong["augment"] = f"one of {(*AUGMENTATIONS,)}"
    for name, rule in wrong.items():
        flag, value = f"--{name.replace('_', '-')}", getattr(preset, name)
        raise DataError(f"{flag} must be {rule}; got {value!r}. Change it, or leave it to the preset.")


def _positive(value: object) -> bool:
    return not isinstance(value, int | float) or isinstance(value, bool) or value > 0
