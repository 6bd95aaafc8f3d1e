"""The table of transforms in the docs: `python -m tests.support.oracles.table` writes it, and a test holds it up."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from latentaug.augment.base import LatentTransform
from tests.support.codes import KINDS
from tests.support.oracles import ORACLES, Oracle, errors

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "transforms.md"
COSTS = ROOT / "benchmarks" / "results" / "cpu" / "transforms.json"
START, END = "<!-- table: written by the tests -->\n", "<!-- end of the table -->\n"
GOOD = 1e-6
"""The largest relative error with which a loop and a transform agree."""


def rows() -> Iterator[list[str]]:
    """Measure every transform against its loop in every layout."""
    costs = _costs()
    for kind, oracle in sorted(ORACLES.items(), key=lambda item: item[0].__name__):
        agreeing, largest = _agreement(oracle)
        steps = [" / ".join(row) for name, row in costs.items() if re.match(rf"{kind.__name__}\(", name)]
        yield [f"`{kind.__name__}`", _paper(kind), _place(kind), agreeing, f"{largest:.0e}", "; ".join(steps) or "-"]


def documented() -> list[list[str]]:
    """Return the rows of the page."""
    lines = PAGE.read_text().split(START)[1].split(END)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]


def write() -> None:
    """Write the table into the page."""
    head = ["transform", "paper", "where", "layouts", "largest error", f"training step ({', '.join(_sizes())})"]
    lines = [head, ["---"] * len(head), *rows()]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    page = PAGE.read_text()
    PAGE.write_text(page.split(START)[0] + START + "\n" + table + "\n" + END + page.split(END)[1])


def _agreement(oracle: Oracle) -> tuple[str, float]:
    found = {name: errors(oracle.make(), oracle.expected, kind) for name, kind in KINDS.items()}
    off = {name: max(one.values, one.gradients) for name, one in found.items()}
    agreeing = [name.replace("_", " ") for name, error in off.items() if error < GOOD]
    return "all" if len(agreeing) == len(KINDS) else ", ".join(agreeing), max(off.values())


def _paper(kind: type[LatentTransform]) -> str:
    """Return who published it, as the docstring says."""
    text = inspect.getdoc(kind) or ""
    found = re.search(r"References:\s+(.*?)(?:\n\n|\Z)", text, re.DOTALL)
    if found is None:
        return "-"
    first = re.split(r"[;,] (?:for|who|arXiv)|[;.] |\(", " ".join(found[1].split()))[0]
    number = re.search(r"arXiv:\d+\.\d+", found[1])
    return f"{first.rstrip(',. ')}{f', {number[0]}' if number else ''}"


def _place(kind: type[LatentTransform]) -> str:
    return kind.place


def _tables() -> list[dict[str, object]]:
    return json.loads(COSTS.read_text())["tables"] if COSTS.exists() else []


def _sizes() -> list[str]:
    return [str(table["title"]) for table in _tables()] or ["not measured"]


def _costs() -> dict[str, list[str]]:
    costs: dict[str, list[str]] = {}
    for table in _tables():
        at = list(table["columns"]).index("step")  # type: ignore[call-overload]
        for name, values in table["rows"].items():  # type: ignore[attr-defined]
            costs.setdefault(name, []).append(f"{values[at]:.2f}")
    return costs


if __name__ == "__main__":
    write()
