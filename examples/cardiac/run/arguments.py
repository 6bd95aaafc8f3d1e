"""What the cardiac study's command line and settings file say, and what is made of it: data and configuration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cardiac.data.corruptions import PARAMETERS
from cardiac.data.phantom import cached_phantom
from cardiac.run.presets import PRESETS, Preset
from cardiac.run.study import Sources
from study.data.frame import DataError
from study.methods.network import Network
from study.run import arguments as general
from study.run.arguments import Parser, training_settings, with_digest
from study.run.scores import AVERAGE

DEFAULTS: dict[str, Any] = {
    **general.DEFAULTS,
    "methods": ["plain", "standard", "cooperative"],
    "external": [],
    "no_cache": False,
}
"""What settings are that no flag, file or preset says; those that aren't here are None."""
TAKEN = {"ACDC", AVERAGE, *PARAMETERS}
"""Columns of the table that no further test set may be called."""


def parse(arguments: Sequence[str], about: str | None = None) -> argparse.Namespace:
    """Return all settings, as `study.run.arguments.parse` does.

    Args:
        arguments: What follows the script's name.
        about: What `--help` says first.
    """
    return general.parse(make_parser(about), arguments, DEFAULTS, PRESETS)


def one_by_one(options: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the settings of each run, as `study.run.arguments.one_by_one` does."""
    return general.one_by_one(options, Preset)


def preset_of(options: argparse.Namespace) -> Preset:
    """Return the preset, with what the flags change in it."""
    return general.preset_of(options, Preset)


def make_parser(about: str | None) -> Parser:
    """Make the parser of the command line; the data first."""
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--acdc", type=Path, metavar="DIR", help="ACDC, as released or preprocessed; without it a phantom is generated")
    add("--mnms", type=Path, metavar="DIR", help="M&Ms as released, a further test set")
    add("--external", action="extend", nargs="+", metavar="NAME=DIR", help="further test sets; repeatable")
    add("--split", type=Path, metavar="FILE", help='JSON with "train", "validation" and "test", lists of ACDC patients')
    add("--published", type=Path, metavar="FILE", help="CSV of further rows to show in the table")
    add("--cache", type=Path, metavar="DIR", help="keeps preprocessed volumes (default: the user's cache folder)")
    add("--no-cache", action="store_true", default=None, help="keep none")
    about = "score total failures and calibration too; what is tested already is not tested again"
    add("--calibration", action="store_true", default=None, help=about)
    general.add_flags(parser, Preset, PRESETS, DEFAULTS)
    return parser


def find(options: argparse.Namespace) -> Sources:
    """Return the data that the flags name, or a phantom of them."""
    if options.acdc is None:
        if options.mnms is not None or options.external or options.split is not None:
            raise DataError("--mnms, --external and --split need --acdc, to train on. Add it, or leave them out.")
        return Sources(*cached_phantom(), external={})
    external = {}
    for pair in options.external:
        name, sign, folder = pair.partition("=")
        if not (name and sign and folder) or not name.replace(" ", "").isalnum() or name in external:
            raise DataError(
                f"--external must be NAME=DIR, letters and digits, each name once; got {pair!r}. Correct it."
            )
        if name in TAKEN:
            raise DataError(f"--external {name}: the table has a column of that name. Call the test set otherwise.")
        external[name] = Path(folder)
    return Sources(options.acdc, options.mnms, external)


def as_flags(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all settings by their flags' names, those left out that say nothing; data folders from the root on."""
    settings = {name: value for name, value in vars(options).items() if name not in ("config", "resume", "output")}
    for name in ("acdc", "mnms", "published", "cache", "split", "pretrained"):
        settings[name] = settings[name] and settings[name].resolve()
    settings["no_cache"] = settings["no_cache"] or None
    pairs = (pair.partition("=") for pair in settings["external"])
    settings["external"] = [f"{name}={Path(there).resolve()}" for name, _, there in pairs]
    return {name: value for name, value in settings.items() if value not in (None, [])} | {"output": folder.resolve()}


def describe(options: argparse.Namespace, preset: Preset, network: Network, sources: Sources) -> dict[str, Any]:
    """Return all that the numbers depend on."""
    folders = {"ACDC": sources.acdc, "M&Ms": sources.mnms, **sources.external}
    data = {name: str(folder.resolve()) for name, folder in folders.items() if folder is not None}
    if options.acdc is None:
        data = {name: f"{sources.acdc.parent.name}/{Path(folder).name}" for name, folder in data.items()}
    return {
        "preset": options.preset,
        **training_settings(preset),
        **(network.settings if network != Network() else {}),
        "seed": options.seed,
        "data": data,
        "split": None if options.split is None else with_digest(options.split, "--split"),
    }
