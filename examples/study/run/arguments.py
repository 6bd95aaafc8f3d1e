"""What the command lines and settings files of all studies say, and what is made of it."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from study.data.frame import DataError
from study.data.plain_files import read_bytes
from study.methods import GROUPS, METHODS, chosen
from study.methods.augmentations import NONE
from study.methods.network import PAPERS, Network
from study.run.configuration import read_arguments
from study.run.presets import Preset

P = TypeVar("P", bound=Preset)

DEFAULTS: dict[str, Any] = {
    "preset": "quick",
    "model": PAPERS,
    "layers": [],
    "depths": [],
    "device": "cuda" if torch.cuda.is_available() else "cpu",
    "seed": 0,
    "resume": False,
}
"""What settings are that no flag, file or preset says; those that aren't here are None."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        """Refuse an argument."""
        raise DataError(f"{message}. See --help.")


def parse(
    parser: Parser, arguments: Sequence[str], defaults: Mapping[str, Any], presets: Mapping[str, Preset]
) -> argparse.Namespace:
    """Return all settings: of the command line, else of the file that it names, else of the preset, else defaults.

    Args:
        parser: Of the command line.
        arguments: What follows the script's name.
        defaults: As `DEFAULTS`, with those of the study's own.
        presets: By their names.

    Raises:
        DataError: something is unknown, or has no such value.
    """
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
    settings = {**defaults, **read, **given}
    settings = {**dict.fromkeys(known), **asdict(presets[settings["preset"]]), **settings}
    several = [settings["augment"]] if isinstance(settings["augment"], str) else [*dict.fromkeys(settings["augment"])]
    return argparse.Namespace(**{**settings, "methods": chosen(settings["methods"]), "augment": several})


def one_by_one(options: argparse.Namespace, kind: type[Preset]) -> list[argparse.Namespace]:
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
        preset_of(run, kind)
    return runs


def preset_of(options: argparse.Namespace, kind: type[P]) -> P:
    """Return the preset, with what the flags change in it."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})


def flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse arguments, and return only what is in them."""
    return {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}


def add_flags(parser: Parser, kind: type[Preset], presets: Mapping[str, Preset], defaults: Mapping[str, Any]) -> None:
    """Add what all studies take to a command line; every field of a preset is a flag.

    Args:
        parser: Of the command line.
        kind: Of the study's presets.
        presets: By their names.
        defaults: What `parse` is given.
    """
    add, methods, model = parser.add_argument, " ".join(defaults["methods"]), defaults["model"]
    add("--preset", choices=presets, help="what the flags below say unless given (default: quick)")
    add(
        "--methods",
        nargs="+",
        choices=[*METHODS, *GROUPS],
        metavar="METHOD",
        help=f"what to train: {', '.join(METHODS)}; or several, by {', '.join(GROUPS)} (default: {methods})",
    )
    add("--model", metavar="NAME", help=f"FTN, the paper's, or such as smp:Unet:resnet34 (default: {model})")
    add(
        "--layers",
        nargs="+",
        metavar="NAME",
        help="layers to mask in segmentations, such as 'encoder[5]' (default: what is found; all levels, or, beside an "
        "image decoder, the bottleneck)",
    )
    add("--depths", nargs="+", type=int, metavar="N", help="the same by number: 5 4 means 'encoder[5]' 'encoder[4]'")
    add(
        "--image-code",
        metavar="NAME",
        help="layer that images are reconstructed from (default: one of stride 8 at most)",
    )
    add("--encoder-weights", metavar="NAME", help="of a library's encoder, such as imagenet (default: random)")
    add("--pretrained", type=Path, metavar="FILE", help="weights of a library's encoder, by torch.save")
    about = "checkpoint of a run's training to start from, such as runs/none/plain/draw-{draw}/last.pt"
    add("--start", metavar="FILE", help=about)
    add("--config", type=Path, metavar="FILE", help="TOML with any of these settings by name; flags take precedence")
    add("--output", type=Path, metavar="DIR", help="results and checkpoints (default: a folder of its own below runs/)")
    add("--resume", action="store_true", default=None, help="refuse to start anew (default: go on from what is there)")
    add("--device", help=f"where to train (default: {defaults['device']})")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--seed", type=int, metavar="N", help="of weights, order, augmentation, noise and masks (default: 0)")
    group = parser.add_argument_group("preset")
    for field in fields(kind):
        flag, about = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if field.name == "augment":
            about += "; several are runs of their own, in folders by their names below --output"
            group.add_argument(flag, nargs="+", metavar="NAME", help=about)
        elif isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
        else:
            group.add_argument(flag, type=type(field.default or 0), metavar="N", help=about)


def choose_network(options: argparse.Namespace) -> Network:
    """Return the network that the flags name, and which of its layers are masked."""
    if options.layers and options.depths:
        raise DataError("--layers and --depths both say what to mask. Leave one of them out.")
    if options.depths and options.model == PAPERS:
        raise DataError(f"--depths counts a library's encoder; the {PAPERS} has none. Pass --model, or --layers.")
    layers = options.layers or [f"encoder[{depth}]" for depth in options.depths]
    return Network(
        options.model,
        tuple(layers),
        options.image_code,
        options.encoder_weights,
        options.pretrained and options.pretrained.resolve(),
        options.start and str(Path(options.start).resolve()),
    )


def training_settings(preset: Preset) -> dict[str, Any]:
    """Return the settings that the numbers depend on; the number of draws is left out, as more of them can follow."""
    # A run that makes no use of a choice says nothing of it, as runs did before there was one.
    left_out = {"draws"} | ({"augment"} if preset.augment == NONE else set())
    left_out |= set() if preset.equal_time else {"equal_time"}
    return {name: value for name, value in asdict(preset).items() if name not in left_out}


def with_digest(file: Path, flag: str) -> str:
    """Name a file and what is in it, so that another content is another configuration.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return f"{file.name}, sha256 {hashlib.sha256(read_bytes(file)).hexdigest()[:12]}"
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Correct {flag}.") from None
