"""What the command line and a settings file say, and what is made of it: data, network, configuration."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import torch

from cardiac.data.corruptions import PARAMETERS
from cardiac.data.phantom import cached_phantom
from cardiac.data.plain_files import read_bytes
from cardiac.data.readers import DataError
from cardiac.methods import GROUPS, METHODS, chosen
from cardiac.methods.augmentations import NONE
from cardiac.methods.network import PAPERS, Network
from cardiac.run.configuration import read_arguments
from cardiac.run.presets import PRESETS, Preset
from cardiac.run.scores import AVERAGE
from cardiac.run.study import Sources

DEFAULTS: dict[str, Any] = {
    "preset": "quick",
    "methods": ["standard", "cooperative"],
    "external": [],
    "model": PAPERS,
    "layers": [],
    "depths": [],
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    "seed": 0,
    "resume": False,
    "no_cache": False,
}
"""What settings are that no flag, file or preset says; those that aren't here are None."""
TAKEN = {"ACDC", AVERAGE, *PARAMETERS}
"""Columns of the table that no further test set may be called."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        """Refuse an argument."""
        raise DataError(f"{message}. See --help.")


def parse(arguments: Sequence[str], about: str | None = None) -> argparse.Namespace:
    """Return all settings: of the command line, else of the file that it names, else of the preset, else defaults.

    Args:
        arguments: What follows the script's name.
        about: What `--help` says first.

    Raises:
        DataError: something is unknown, or has no such value.
    """
    parser = make_parser(about)
    given = flags(parser, arguments)
    known = [name for name in vars(parser.parse_args([])) if name not in ("config", "resume")]
    read: dict[str, Any] = {}
    if (file := given.get("config")) is not None:
        from_file = read_arguments(file, known)
        try:
            read = flags(parser, from_file)
        except DataError as error:
            raise DataError(f"--config {file}: {error}") from None
    if {"layers", "depths"} & {*given}:  # two ways to say one thing: the command line's counts
        read = {name: value for name, value in read.items() if name not in ("layers", "depths")}
    settings = {**DEFAULTS, **read, **given}
    settings = {**dict.fromkeys(known), **asdict(PRESETS[settings["preset"]]), **settings}
    several = [settings["augment"]] if isinstance(settings["augment"], str) else [*dict.fromkeys(settings["augment"])]
    return argparse.Namespace(**{**settings, "methods": chosen(settings["methods"]), "augment": several})


def one_by_one(options: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the settings of each run: one for each augmentation, in a folder of its own where there are several.

    Raises:
        DataError: a setting of one of them has no such value.
    """
    runs: list[argparse.Namespace] = []
    for augment in options.augment:
        folder = options.output and (options.output / augment if len(options.augment) > 1 else options.output)
        of_its_own = {"augment": augment, "output": folder, "resume": options.resume and not runs}
        runs.append(argparse.Namespace(**{**vars(options), **of_its_own}))
    for run in runs:
        preset_of(run)
    return runs


def preset_of(options: argparse.Namespace) -> Preset:
    """Return the preset, with what the flags change in it."""
    return Preset(**{field.name: getattr(options, field.name) for field in fields(Preset)})


def flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse arguments, and return only what is in them."""
    return {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}


def make_parser(about: str | None) -> Parser:
    """Make the parser of the command line; every field of a preset is a flag."""
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--acdc", type=Path, metavar="DIR", help="ACDC, as released or preprocessed; without it a phantom is generated")
    add("--mnms", type=Path, metavar="DIR", help="M&Ms as released, a further test set")
    add("--external", action="extend", nargs="+", metavar="NAME=DIR", help="further test sets; repeatable")
    add("--split", type=Path, metavar="FILE", help='JSON with "train", "validation" and "test", lists of ACDC patients')
    add("--published", type=Path, metavar="FILE", help="CSV of further rows to show in the table")
    add("--cache", type=Path, metavar="DIR", help="keeps preprocessed volumes (default: the user's cache folder)")
    add("--no-cache", action="store_true", default=None, help="keep none")
    add("--preset", choices=PRESETS, help="what the flags below say unless given (default: quick)")
    add(
        "--methods",
        nargs="+",
        choices=[*METHODS, *GROUPS],
        metavar="METHOD",
        help=f"what to train: {', '.join(METHODS)}; or several, by {', '.join(GROUPS)} (default: standard cooperative)",
    )
    add("--model", metavar="NAME", help="FTN, the paper's, or such as smp:Unet:resnet34 (default: FTN)")
    add(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="layers to mask in segmentations, such as 'encoder[5]' (default: the bottleneck)",
    )
    add("--depths", nargs="+", type=int, metavar="N", help="the same by number: 5 4 means 'encoder[5]' 'encoder[4]'")
    add(
        "--image-code",
        metavar="NAME",
        help="layer that images are reconstructed from (default: one of stride 8 at most)",
    )
    add("--encoder-weights", metavar="NAME", help="of a library's encoder, such as imagenet (default: random)")
    add("--config", type=Path, metavar="FILE", help="TOML with any of these settings by name; flags take precedence")
    add("--output", type=Path, metavar="DIR", help="results and checkpoints (default: a folder of its own below runs/)")
    add("--resume", action="store_true", default=None, help="refuse to start anew (default: go on from what is there)")
    add("--device", help=f"where to train (default: {DEFAULTS['device']})")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--seed", type=int, metavar="N", help="of weights, order, augmentation, noise and masks (default: 0)")
    group = parser.add_argument_group("preset")
    for field in fields(Preset):
        flag, about = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if field.name == "augment":
            about += "; several are runs of their own, in folders by their names below --output"
            group.add_argument(flag, nargs="+", metavar="NAME", help=about)
        elif isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
        else:
            group.add_argument(flag, type=type(field.default or 0), metavar="N", help=about)
    return parser


def choose_network(options: argparse.Namespace) -> Network:
    """Return the network that the flags name, and which of its layers are masked."""
    if options.layers and options.depths:
        raise DataError("--layers and --depths both say what to mask. Leave one of them out.")
    if options.depths and options.model == PAPERS:
        raise DataError(f"--depths counts a library's encoder; the {PAPERS} has none. Pass --model, or --layers.")
    layers = options.layers or [f"encoder[{depth}]" for depth in options.depths]
    return Network(options.model, tuple(layers), options.image_code, options.encoder_weights)


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
    for name in ("acdc", "mnms", "published", "cache", "split"):
        settings[name] = settings[name] and settings[name].resolve()
    settings["no_cache"] = settings["no_cache"] or None
    pairs = (pair.partition("=") for pair in settings["external"])
    settings["external"] = [f"{name}={Path(there).resolve()}" for name, _, there in pairs]
    return {name: value for name, value in settings.items() if value not in (None, [])} | {"output": folder.resolve()}


def describe(options: argparse.Namespace, preset: Preset, network: Network, sources: Sources) -> dict[str, Any]:
    """Return all that the numbers depend on; the number of draws is left out, as more of them can follow."""
    # A run that makes no use of a choice says nothing of it, as runs did before there was one.
    left_out = {"draws"} | ({"augment"} if preset.augment == NONE else set())
    left_out |= set() if preset.equal_time else {"equal_time"}
    settings = {name: value for name, value in asdict(preset).items() if name not in left_out}
    folders = {"ACDC": sources.acdc, "M&Ms": sources.mnms, **sources.external}
    data = {name: str(folder.resolve()) for name, folder in folders.items() if folder is not None}
    if options.acdc is None:
        data = {name: f"{sources.acdc.parent.name}/{Path(folder).name}" for name, folder in data.items()}
    return {
        "preset": options.preset,
        **settings,
        **(network.settings if network != Network() else {}),
        "seed": options.seed,
        "data": data,
        "split": None if options.split is None else _with_digest(options.split),
    }


def _with_digest(file: Path) -> str:
    """Name a file and what is in it, so that another content is another configuration."""
    try:
        return f"{file.name}, sha256 {hashlib.sha256(read_bytes(file)).hexdigest()[:12]}"
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Correct --split.") from None
