"""Results: where they were measured, as JSON, as a table and as a figure."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "torchvision",
    "monai",
    "segmentation-models-pytorch",
    "timm",
    "transformers",
    "dynamic-network-architectures",
)


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Args:
        device: Where to measure.
        threads: CPU threads of each process.
        repeats: Timed repetitions.
        quick: Whether to use sizes so small that only the machinery is tried.
        authors: A checkout of the authors' code; None for none.
        compiled: Whether to time compiled steps on a CPU too.
        seconds: How long a part that can end early may take; None for as long as it takes.
        networks: What the names of the networks of `step` contain; empty for all.
    """

    device: str
    threads: int
    repeats: int
    quick: bool = False
    authors: Path | None = None
    compiled: bool = False
    seconds: float | None = None
    networks: str = ""


@dataclass(frozen=True)
class Table:
    """Measurements with names: one row for each thing measured, one column for each quantity.

    Args:
        title: What it shows.
        columns: Names of the columns after the first, which names the row.
        rows: Values by the names of rows.
        formats: How values are written, by columns; default "{:.2f}".
    """

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Any]]
    formats: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """Write the table."""
        lines = [f"| {self.title} | {' | '.join(self.columns)} |", f"|{'---|' * (1 + len(self.columns))}"]
        for name, values in self.rows.items():
            cells = [self._cell(column, value) for column, value in zip(self.columns, values, strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _cell(self, column: str, value: Any) -> str:
        if value is None:
            return ""
        return value if isinstance(value, str) else self.formats.get(column, "{:.2f}").format(value)


@dataclass(frozen=True)
class Report:
    """What a part of the benchmarks returns.

    Args:
        tables: The first is drawn: a bar for each row, as long as the value in the column `drawn`.
        drawn: That column.
        notes: Lines below the tables.
        failed: What is not as it has to be; None if all is.
    """

    tables: Sequence[Table]
    drawn: str
    notes: Sequence[str] = ()
    failed: str | None = None

    def markdown(self) -> str:
        """Write all tables and notes."""
        return "\n\n".join([*(table.markdown() for table in self.tables), *self.notes]) + "\n"


def write(report: Report, name: str, options: Options, folder: Path) -> None:
    """Write a report as `name`.json, .md and .png below a folder, with all that the numbers depend on."""
    folder.mkdir(parents=True, exist_ok=True)
    place = environment(options)
    tables = [
        {"title": t.title, "columns": [*t.columns], "rows": {k: [*v] for k, v in t.rows.items()}} for t in report.tables
    ]
    content = {"environment": place, "tables": tables, "notes": [*report.notes]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    about = "{hardware}, {threads} threads, torch {versions[torch]}, {date}, commit {commit}".format(**place)
    command = f"`python -m benchmarks {name}`"
    (folder / f"{name}.md").write_text(f"{command}; {about}\n\n{report.markdown()}")
    _draw(report, about, folder / f"{name}.png")


def environment(options: Options) -> dict[str, Any]:
    """Say when, where and with what something was measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "hardware": hardware(options.device),
        "threads": options.threads,
        "repeats": options.repeats,
        "quick": options.quick,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}".strip(),
        "versions": {package: version for package in PACKAGES if (version := _version(package))},
    }


def hardware(device: str) -> str:
    """Name the processor, or the accelerator."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def place(device: str) -> str:
    """Name the folder of a device's results: by the card, or "cpu"."""
    if torch.device(device).type != "cuda":
        return torch.device(device).type
    return re.sub(r"[^a-z0-9]+", "-", hardware(device).lower()).strip("-")


def commit() -> str:
    """Name the commit that is checked out, and say if the package differs from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "../latentaug"], capture_output=True, text=True, check=False
    )
    return (head.stdout.strip() or "unknown") + (" with changes" if changed.stdout else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _draw(report: Report, about: str, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:  # it may not be there; the numbers are in the other two files
        return
    table = report.tables[0]
    place = table.columns.index(report.drawn)
    bars = {name: values[place] for name, values in table.rows.items() if values[place] is not None}
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(bars)), layout="constrained")
    axes = figure.subplots()
    axes.barh([*bars], [*bars.values()], color="#0072b2")
    axes.invert_yaxis()
    axes.set_xlabel(report.drawn)
    axes.set_title(table.title, loc="left")
    figure.text(0.01, -0.02, about, fontsize=6)
    figure.savefig(path, dpi=120, bbox_inches="tight")
