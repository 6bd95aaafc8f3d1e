"""Run benchmarks: `python -m benchmarks [part ...]`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.report import Options, place, write

PARTS = ("step", "paper", "memory", "flops", "replay", "transforms", "maskers", "data", "scaling", "waits", "training")
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for, print their tables and write them; return the exit code."""
    options, parts, folder = parse(arguments)
    warnings.simplefilter("ignore")
    if options.authors is not None and not (options.authors / "medseg").is_dir():
        print(f"--authors {options.authors}: there is no medseg/ in it, so it is left out.", file=sys.stderr)
        options = replace(options, authors=None)
    failed = []
    for name in parts:
        print(f"## {name}\n", flush=True)
        report = import_module(f"benchmarks.{name}").run(options)
        write(report, name, options, folder)
        print(report.markdown(), flush=True)
        if report.failed is not None:
            failed.append(f"{name}: {report.failed}")
    print(f"Written to {folder}: a .md, .json and .png of each part.")
    for failure in failed:
        print(failure, file=sys.stderr)
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> tuple[Options, list[str], Path]:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What latentaug costs.")
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)")
    add("--repeats", type=int, default=7, help="timed repetitions (default: %(default)s)")
    add("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    add("--authors", type=Path, metavar="DIR", help="a checkout of the authors' code, to time beside ours")
    add("--compiled", action="store_true", help="time compiled steps on a CPU too; on a GPU they are")
    add("--seconds", type=float, metavar="S", help="end `step` and `training` early (default: as long as they take)")
    add("--networks", default="", metavar="TEXT", help="of `step`, those with TEXT in their names (default: all)")
    add("--output", type=Path, metavar="DIR", help="(default: benchmarks/results/, by the name of the card, or cpu)")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.parts) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if given.threads < 1 or given.repeats < 1:
        parser.error("--threads and --repeats must be 1 or more")
    options = Options(
        given.device,
        given.threads,
        given.repeats,
        given.quick,
        given.authors,
        given.compiled,
        given.seconds,
        given.networks,
    )
    return options, given.parts or [*PARTS], given.output or RESULTS / place(given.device)


if __name__ == "__main__":
    sys.exit(main())
