"""The command: models and a loader of the user's own, named as `file.py:name` or `package.module:name`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from latentaug.robustness.measure import measure
from latentaug.robustness.shifts import SEVERITIES, Shift, intensity_shifts, mr_artefacts

KINDS = {"intensity": intensity_shifts, "mr": mr_artefacts}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the report; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m latentaug.robustness",
        description="Dice of trained models under shifts that they never saw. Nothing is trained.",
    )
    parser.add_argument("models", help="a model, or a mapping of several by name, or what returns it: file.py:name")
    parser.add_argument("loader", help="batches (images, labels), or what returns them: file.py:name")
    parser.add_argument("--num-classes", type=int, required=True, help="channels of the logits")
    parser.add_argument(
        "--shifts", nargs="+", default=["intensity"], metavar="KIND", help="intensity, mr, or file.py:name"
    )
    parser.add_argument("--severities", nargs="+", type=int, default=[*SEVERITIES], metavar="N")
    parser.add_argument("--ignore-index", type=int, default=-100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="robustness", metavar="DIR", help="where to write the report")
    options = parser.parse_args(arguments)
    try:
        _see_that_it_can_be_written_to(Path(options.output))
        shifts: dict[str, Shift] = {}
        for kind in options.shifts:
            shifts |= KINDS[kind]() if kind in KINDS else _shifts(kind)
        found = measure(
            _made(options.models),
            _made(options.loader),
            num_classes=options.num_classes,
            shifts=shifts,
            severities=options.severities,
            ignore_index=options.ignore_index,
            seed=options.seed,
        )
        print(found.to_markdown())
        print(f"Written to {found.write(options.output)}: robustness.json, .md, .html and .png.")
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _see_that_it_can_be_written_to(folder: Path) -> None:
    """See that a folder is none yet, or one, before anything is measured.

    Raises:
        NotADirectoryError: It is something else, or lies in something else.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"--output {folder}: {there} is no folder. Name one, or what is none yet.")


def _shifts(name: str) -> dict[str, Shift]:
    """Return the shifts that a name stands for: a mapping of them, what returns one, or a shift.

    Raises:
        TypeError: It is something else.
    """
    found = _found(name)
    if callable(found) and _takes_arguments(found):
        return {name.rpartition(":")[2]: found}
    made = _made(name)
    if not isinstance(made, Mapping):
        raise TypeError(
            f"--shifts {name} must be a shift, a callable (images, severity, generator) -> images, or a mapping of "
            f"some by name, or what returns one; got {type(made).__name__}."
        )
    return dict(made)


def _takes_arguments(function: Any) -> bool:
    """Tell whether a callable cannot be called without any."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:  # one that does not say
        return False
    return False


def _made(name: str) -> Any:
    """Return what a name stands for, and call it if it is a function."""
    found = _found(name)
    return found() if callable(found) and not isinstance(found, nn.Module) else found


def _found(name: str) -> Any:
    """Import what a name stands for.

    Raises:
        ValueError: It has no colon, or there is nothing of that name.
        FileNotFoundError: There is no such file.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise ValueError(f"{name!r} must be file.py:name or package.module:name.")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise FileNotFoundError(f"there is no file {place}.")
        module = _loaded(Path(place))
    else:
        module = importlib.import_module(place)
    if not hasattr(module, attribute):
        raise ValueError(f"{place} has no {attribute!r}.")
    return getattr(module, attribute)


def _loaded(file: Path) -> ModuleType:
    """Return the module of a file, which runs once.

    It is known by the file's name, by which worker processes import what a loader is made of; or by a longer one where
    another module has that.
    """
    name = file.stem.replace(".", "_")
    while _place_of(name) not in (None, file.resolve()):
        name += "_"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _place_of(name: str) -> Path | None:
    """Return where the module of a name comes from, whether it is imported or not; None if there is none."""
    module = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if module is None else None
    if module is None and spec is None:
        return None
    return Path(getattr(module, "__file__", None) or (spec and spec.origin) or name).resolve()


if __name__ == "__main__":
    sys.exit(main())
