"""A run from its settings to its trainings: each method on each draw, those left out that are done."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import torch

from cardiac.data.cache import Cache, user_cache
from cardiac.data.readers import DataError
from cardiac.methods import METHODS
from cardiac.methods.network import HEADS, Network
from cardiac.run.arguments import as_flags, choose_network, describe, find, preset_of
from cardiac.run.configuration import to_toml
from cardiac.run.memory import memory_advice
from cardiac.run.outputs import Outputs
from cardiac.run.presets import Preset
from cardiac.run.study import Study
from cardiac.run.training import train_and_test
from latentaug import tune_allocator


def run(options: argparse.Namespace, command: str) -> Outputs:
    """Train and test what is not done yet; return the folder that holds all that is.

    Args:
        options: One of what `one_by_one` gives.
        command: What started the run, for `done.json`.

    Raises:
        DataError: a setting or the data are wrong, or the folder is another run's.
    """
    preset = preset_of(options)
    device = prepare(options)
    network = choose_network(options)
    sources = find(options)
    configuration = describe(options, preset, network, sources)
    outputs = Outputs(options.output, configuration, defaults={**asdict(Preset()), **Network().settings})
    settings = to_toml(as_flags(options, outputs.folder))
    print(settings, flush=True)
    wanted = [(method, draw) for draw in range(preset.draws) for method in options.methods]
    if options.resume and not any(outputs.is_begun(*each) for each in wanted):
        raise DataError(f"--resume: {outputs.folder} has nothing to go on from. Correct --output, or leave it out.")
    if todo := [each for each in wanted if not outputs.is_done(*each)]:
        model = network.build(preset, HEADS)  # what can't be built shows before anything is read
        for method in options.methods:
            METHODS[method].see_that_it_fits(method, model)
        cache = Cache(None if options.no_cache else options.cache or user_cache() / "frames")
        study = Study(sources, preset, options.split, cache)
        study.load(sorted({draw for _, draw in todo}))
        outputs.open(settings)
        for method, draw in todo:
            with memory_advice(preset, device, network):
                train_and_test(method, draw, study, outputs, device, network, command)
    return outputs


def prepare(options: argparse.Namespace) -> torch.device:
    """Check device, threads and seed, and set them up."""
    if not 0 <= options.seed < 2**32 or (options.threads is not None and options.threads < 1):
        raise DataError("--seed must be in 0..2^32 - 1, and --threads 1 or more. Change it or leave it out.")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        device = torch.zeros(1, device=options.device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"--device {options.device} cannot be used ({reason}). Try --device cpu.") from None
    if device.type == "cpu" and tune_allocator():
        print("malloc keeps large blocks from now on: training steps are faster.")
    return device
