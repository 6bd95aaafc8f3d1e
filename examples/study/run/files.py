"""Files of a run, each written whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` and move it there on success, so that no reader meets half a file."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, head: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a table, its headings first."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(lines)


def save_figure(path: Path, figure: Figure, configuration: Mapping[str, Any]) -> None:
    """Save a figure with the configuration in a footer and, whole, in the file's metadata."""
    footer = ", ".join(
        f"{name} {value}" for name, value in configuration.items() if isinstance(value, str | int | float)
    )
    figure.text(0.5, -0.03, footer, ha="center", va="top", fontsize=6, color="grey", wrap=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight", metadata={"Description": json.dumps(configuration)})
