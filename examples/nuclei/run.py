"""A run of the study on nuclei: its command line, its trainings, and what it says in the end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nuclei.generated import generate_images
from nuclei.images import read_images
from nuclei.presets import PRESETS, Preset
from nuclei.study import Study
from study.methods.network import Network
from study.run import arguments as general
from study.run import experiment
from study.run.arguments import Parser, choose_network, preset_of, training_settings
from study.run.outputs import Outputs

DEFAULTS: dict[str, Any] = {**general.DEFAULTS, "methods": ["plain", "default"], "model": "smp:Unet:resnet18"}
"""What settings are that no flag, file or preset says; those that aren't here are None."""


def parse(arguments: Sequence[str], about: str | None = None) -> argparse.Namespace:
    """Return all settings, as `study.run.arguments.parse` does.

    Args:
        arguments: What follows the script's name.
        about: What `--help` says first.
    """
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "images of the 2018 Data Science Bowl, as released or sorted by domain; without it some are generated"
    parser.add_argument("--data", type=Path, metavar="DIR", help=what)
    general.add_flags(parser, Preset, PRESETS, DEFAULTS)
    return general.parse(parser, arguments, DEFAULTS, PRESETS)


def one_by_one(options: argparse.Namespace) -> list[argparse.Namespace]:
    """Return the settings of each run, as `study.run.arguments.one_by_one` does."""
    return general.one_by_one(options, Preset)


def run(options: argparse.Namespace, command: str) -> Outputs:
    """Train and test what is not done yet; return the folder that holds all that is.

    Args:
        options: One of what `one_by_one` gives.
        command: What started the run, for `done.json`.

    Raises:
        DataError: a setting or the data are wrong, or the folder is another run's.
    """
    preset, network = preset_of(options, Preset), choose_network(options)

    def read(draws: Sequence[int]) -> Study:
        if options.data is None:
            return Study(generate_images(), preset, "The images are generated, and say nothing about real ones.")
        images = read_images(options.data)
        counts = ", ".join(f"{name} {len(frames)}" for name, frames in images.items())
        return Study(images, preset, f"Images by domain: {counts}.")

    def settings(folder: Path) -> dict[str, Any]:
        given = {name: value for name, value in vars(options).items() if name not in ("config", "resume", "output")}
        for name in ("data", "pretrained"):
            given[name] = given[name] and given[name].resolve()
        return {name: value for name, value in given.items() if value not in (None, [])} | {"output": folder.resolve()}

    configuration = {
        "preset": options.preset,
        **training_settings(preset),
        **network.settings,
        "seed": options.seed,
        "data": "generated" if options.data is None else str(options.data.resolve()),
    }
    return experiment.run(
        options,
        command,
        preset=preset,
        network=network,
        configuration=configuration,
        defaults={**asdict(Preset()), **Network().settings},
        settings=settings,
        study=read,
    )
