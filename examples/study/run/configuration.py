"""Settings as a TOML file: what --config reads, and what every run leaves behind for it."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from study.data.frame import DataError
from study.data.plain_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def to_toml(settings: Mapping[str, Any]) -> str:
    """Write settings as TOML, one a line.

    Args:
        settings: Strings, numbers, truth values, paths, and lists of these, by names of letters, digits, - and _.

    Example:
        >>> print(to_toml({"seed": 0, "halve": True, "methods": ["standard", "noise"]}), end="")
        seed = 0
        halve = true
        methods = ["standard", "noise"]
    """
    return "".join(f"{name} = {_to_toml(value)}\n" for name, value in settings.items())


def _to_toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_to_toml, value))}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()  # also of True and False


def read_arguments(path: Path, known: Collection[str]) -> list[str]:
    """Read a TOML file as command line arguments: keys are the flags' names, with - or _.

    Args:
        path: The file.
        known: Names of the flags that may be in it, with _.

    Raises:
        DataError: the file can't be read, or holds a key that is unknown or no simple value.
    """
    try:
        settings = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"--config {path}: cannot be read ({error}). Correct it or pass another file.") from None
    arguments: list[str] = []
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"closest: {close[0]}" if close else "see --help for all"
            raise DataError(f"--config {path}: no setting is called {key!r} ({hint}). Correct it or leave it out.")
        arguments += _arguments(path, name, value)
    return arguments


def _arguments(path: Path, name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, str | int | float):
        return [f"{flag}={value}"]
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return [flag, *map(str, value)] if value else []
    raise DataError(f"--config {path}: {name} must be a string, a number, true, false or a list of them. Correct it.")
