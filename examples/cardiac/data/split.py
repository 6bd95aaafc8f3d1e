"""Who trains, who validates and who is tested: the lists of the paper's authors, and splits of other patients."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from study.data.frame import DataError
from study.data.plain_files import read_text

POOL = tuple(f"{20 * block + place:03}" for block in range(5) for place in (1, 2, 3, 4, 5, 6, 12, 13))
"""The 40 labelled patients that the ten of each draw come from."""

DRAWS = (
    ("073", "061", "012", "053", "046", "044", "022", "092", "004", "001"),
    ("002", "041", "001", "033", "006", "024", "022", "021", "025", "086"),
    ("093", "046", "084", "073", "013", "024", "043", "052", "021", "033"),
)
VALIDATION = (
    ("011", "071", "062", "095", "082"),
    ("011", "071", "002", "022", "095"),
    ("011", "071", "002", "062", "095"),
)
VALIDATION_70 = ("005", "020", "023", "037", "042", "046", "066", "078", "082", "097")
TEST = tuple(f"{20 * block + place:03}" for block in range(5) for place in (7, 8, 9, 10))

SETTINGS = (10, 70)
"""How many patients the paper trains on, in its small-data and its large-data setting."""

MOST_LEFT_OVER = 20
"""Patients that methods are chosen by: as many as the paper tests."""


@dataclass(frozen=True)
class Split:
    """Three sets of patients that share nobody.

    Args:
        train: Patients to train on, ED and ES frames alike.
        validation: Patients to select the model by.
        test: Patients to report.
        note: What a reader of the results should know about this split; empty if nothing.

    Raises:
        DataError: a set is empty, or a patient is in two.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    note: str = ""

    def __post_init__(self) -> None:
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        for name, patients in sets.items():
            if not patients:
                raise DataError(f"the split has no {name} patient. Give it at least one.")
        for (one, these), (other, those) in combinations(sets.items(), 2):
            if twice := sorted({*these} & {*those}):
                raise DataError(f"patient {', '.join(twice)} is in {one} and in {other}. Leave it in one of them.")

    @property
    def patients(self) -> tuple[str, ...]:
        """Everybody."""
        return self.train + self.validation + self.test


def paper_split(draw: int, setting: int = 10) -> Split:
    """Return one of the paper's splits, without the patients that it validates on *and* trains on.

    In draw 1 of the ten-patient setting the released lists have 002 and 022 both in training and in validation. The
    training draw is kept; validation loses the two. The 70-patient setting has one split, whatever the draw.

    Raises:
        ValueError: no such draw or setting.
    """
    if setting not in SETTINGS:
        raise ValueError(f"`setting` must be one of {SETTINGS}; got {setting}.")
    if setting == 70:
        rest = (f"{number:03}" for number in range(1, 101))
        return Split(tuple(p for p in rest if p not in {*VALIDATION_70, *TEST}), VALIDATION_70, TEST)
    if not 0 <= draw < len(DRAWS):
        raise ValueError(f"`draw` must be in 0..{len(DRAWS) - 1}; got {draw}.")
    train, listed = DRAWS[draw], VALIDATION[draw]
    leaked = sorted({*train} & {*listed})
    note = (
        f"{' and '.join(leaked)} are listed in both training and validation; validation goes without." if leaked else ""
    )
    return Split(train, tuple(p for p in listed if p not in leaked), TEST, note if leaked else "")


def choose_split(available: Collection[str], draw: int, setting: int = 10) -> Split:
    """Return the paper's split of the patients at hand, or, where these are others, a split of their own.

    Patients of the paper that are missing are left out. If that empties a set, everybody at hand is dealt out anew: a
    fifth (at least one) to validation, a fifth to test, the rest to training, shuffled by `draw`. `note` says which.

    Raises:
        DataError: fewer than three patients.
    """
    paper = paper_split(draw, setting)
    sets = [tuple(p for p in patients if p in available) for patients in (paper.train, paper.validation, paper.test)]
    missing = len(paper.patients) - sum(map(len, sets))
    if not missing:
        return paper
    if all(sets):
        note = f"{paper.note} {missing} of the paper's {len(paper.patients)} patients are not there.".strip()
        return Split(sets[0], sets[1], sets[2], note)
    if len(available) < 3:
        raise DataError(
            "a training, a validation and a test set need a patient each; found only "
            f"{', '.join(sorted(available)) or 'none'}. Give at least 3."
        )
    shuffled = random.Random(draw).sample(sorted(available), len(available))
    fifth = max(1, len(shuffled) // 5)
    note = "The paper's patients are not there: those that are were dealt out by the draw's number."
    return Split(tuple(shuffled[2 * fifth :]), tuple(shuffled[fifth : 2 * fifth]), tuple(shuffled[:fifth]), note)


def read_split(path: Path, available: Collection[str]) -> Split:
    """Read a split from a JSON file: {"train": [...], "validation": [...], "test": [...]}.

    Raises:
        DataError: the file cannot be read, lacks a list, names a patient who is not there, or names one twice.
    """
    try:
        lists = json.loads(read_text(path))
        train, validation, test = (tuple(map(str, lists[name])) for name in ("train", "validation", "test"))
        split = Split(train, validation, test, f"From {path}.")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        wanted = '{"train": [...], "validation": [...], "test": [...]}'
        raise DataError(f"{path}: not a split ({type(error).__name__}: {error}). Write {wanted}.") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if missing := sorted({*split.patients} - {*available}):
        raise DataError(
            f"{path}: patient {', '.join(missing)} is not in the data. Correct the number or add the files."
        )
    return split


def left_over(split: Split, available: Collection[str]) -> tuple[str, ...]:
    """Return the patients to choose methods by: at most 20 whom the split neither trains nor tests on.

    Those who validate come first, and then, in an order that is drawn once, others who are at hand.
    """
    others = sorted({*available} - {*split.patients})
    drawn = random.Random(0).sample(others, len(others))
    return (*split.validation, *drawn)[:MOST_LEFT_OVER]
