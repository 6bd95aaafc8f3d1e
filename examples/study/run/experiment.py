"""A run from its settings to its trainings: each method on each draw, those left out that are done."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from latentaug import tune_allocator
from study.data.frame import DataError
from study.methods import METHODS
from study.methods.network import HEADS, Network
from study.run.configuration import to_toml
from study.run.memory import memory_advice
from study.run.outputs import Outputs
from study.run.presets import Preset
from study.run.study import Study
from study.run.training import train_and_test


def run(
    options: argparse.Namespace,
    command: str,
    *,
    preset: Preset,
    network: Network,
    configuration: Mapping[str, Any],
    defaults: Mapping[str, Any],
    settings: Callable[[Path], Mapping[str, Any]],
    study: Callable[[Sequence[int]], Study],
) -> Outputs:
    """Train and test what is not done yet; return the folder that holds all that is.

    Args:
        options: One of what `one_by_one` gives.
        command: What started the run, for `done.json`.
        preset: What the options say of the training.
        network: What is trained.
        configuration: All that the numbers depend on.
        defaults: What settings mean that a configuration leaves out.
        settings: Returns all flags, given the output folder.
        study: Returns the data, read, of some draws.

    Raises:
        DataError: a setting or the data are wrong, or the folder is another run's.
    """
    device = prepare(options)
    outputs = Outputs(options.output, configuration, defaults=defaults)
    written = to_toml(settings(outputs.folder))
    print(written, flush=True)
    wanted = [(method, draw) for draw in range(preset.draws) for method in options.methods]
    if options.resume and not any(outputs.is_begun(*each) for each in wanted):
        raise DataError(f"--resume: {outputs.folder} has nothing to go on from. Correct --output, or leave it out.")
    if todo := [each for each in wanted if not outputs.is_done(*each)]:
        model = network.build(preset, HEADS)  # what can't be built shows before anything is read
        for method in options.methods:
            METHODS[method].see_that_it_fits(method, model)
        data = study(sorted({draw for _, draw in todo}))
        outputs.open(written)
        for method, draw in todo:
            with memory_advice(preset, device, network):
                train_and_test(method, draw, data, outputs, device, network, command)
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
