"""A run of the cardiac study, from its settings to its trainings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from cardiac.data.cache import Cache, user_cache
from cardiac.run.arguments import as_flags, describe, find, preset_of
from cardiac.run.presets import Preset
from cardiac.run.study import Study
from study.methods.network import Network
from study.run import experiment
from study.run.arguments import choose_network
from study.run.outputs import Outputs


def run(options: argparse.Namespace, command: str) -> Outputs:
    """Train and test what is not done yet; return the folder that holds all that is.

    Args:
        options: One of what `one_by_one` gives.
        command: What started the run, for `done.json`.

    Raises:
        DataError: a setting or the data are wrong, or the folder is another run's.
    """
    preset, network = preset_of(options), choose_network(options)
    sources = find(options)

    def read(draws: Sequence[int]) -> Study:
        cache = Cache(None if options.no_cache else options.cache or user_cache() / "frames")
        study = Study(sources, preset, options.split, cache, calibrated=bool(options.calibration))
        study.load(draws)
        return study

    return experiment.run(
        options,
        command,
        preset=preset,
        network=network,
        configuration=describe(options, preset, network, sources),
        defaults={**asdict(Preset()), **Network().settings},
        settings=lambda folder: as_flags(options, folder),
        study=read,
    )
