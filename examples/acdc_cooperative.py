"""Train with and without latent-space hard examples on cardiac MR, then test on artefacts and on other scanners.

On a generated phantom, in minutes on two cores; or the paper's protocol on real data, on a GPU:

    python examples/acdc_cooperative.py
    python examples/acdc_cooperative.py --acdc DIR --mnms DIR --preset paper

An interrupted run goes on when it is started again in the same way, also after a kill or a power cut. Two methods may
train side by side in one output folder, `--methods standard` here and `--methods cooperative` there; the table shows
all that are done. Any of these settings may come from a file: `--config run.toml`, as each run leaves one behind.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from statistics import fmean

import torch
from cardiac.data.cache import Cache, user_cache
from cardiac.data.readers import DataError
from cardiac.methods.methods import METHODS
from cardiac.methods.models import Network
from cardiac.report.page import PAGE, write_page
from cardiac.report.published import read_published
from cardiac.report.report import Row, curves_figure, save_figure, write_report
from cardiac.run.arguments import as_flags, choose_network, describe, find, parse
from cardiac.run.configuration import to_toml
from cardiac.run.memory import memory_advice
from cardiac.run.metrics import Score
from cardiac.run.outputs import Outputs
from cardiac.run.protocol import Preset
from cardiac.run.study import Study
from cardiac.run.training import train_and_test

from latentaug import tune_allocator


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", sys.argv[0], *arguments])
    try:
        run(parse(arguments, about=__doc__), command)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. What is done is kept; to go on: {command}", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace, command: str) -> None:
    """Train what is not trained yet, test it, and write the table of everything in the output folder."""
    preset = Preset(**{field.name: getattr(options, field.name) for field in fields(Preset)})
    device = prepare(options)
    network = choose_network(options)
    sources = find(options)
    published = [] if options.published is None else read_published(options.published)
    configuration = describe(options, preset, network, sources)
    outputs = Outputs(options.output, configuration, defaults={**asdict(Preset()), **Network().settings})
    settings = to_toml(as_flags(options, outputs.folder))
    print(settings, flush=True)
    wanted = [(method, draw) for draw in range(preset.draws) for method in options.methods]
    if options.resume and not any(outputs.is_begun(*each) for each in wanted):
        raise DataError(f"--resume: {outputs.folder} has nothing to go on from. Correct --output, or leave it out.")
    if todo := [each for each in wanted if not outputs.is_done(*each)]:
        network.build(preset, {})  # what can't be built shows before anything is read
        cache = Cache(None if options.no_cache else options.cache or user_cache() / "frames")
        study = Study(sources, preset, options.split, cache)
        study.load(sorted({draw for _, draw in todo}))
        outputs.open(settings)
        for method, draw in todo:
            with memory_advice(preset, device, network):
                train_and_test(method, draw, study, outputs, device, network, command)
    conclude(outputs, published)


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


def conclude(outputs: Outputs, published: Sequence[Row] = ()) -> None:
    """Write scores, table and curves of every training that is done in the folder, and print the table."""
    scores: list[Score] = []
    notes: list[str] = []
    curves = {}
    finished = [*outputs.finished(METHODS)]
    for name, draw, some, log, about in finished:
        scores += some
        took = f"{name}, draw {draw}: {about['iterations']} iterations in {about['seconds']} s."
        if shifted := about.get("shifted validation dice"):
            took += f" Dice on validation patients under shifts that no test has: {fmean(shifted.values()):.3f}."
        notes += [*about["notes"], METHODS[name].describe(name), took]
        untrained = () if METHODS[name].refines else ("refined", "shape")
        curves[f"{name}, draw {draw}"] = [
            {key: value for key, value in line.items() if not any(word in key for word in untrained)} for line in log
        ]
    if outputs.configuration["preset"] == "quick":
        notes.append("The quick preset is too short to rank methods on real data: it shows that everything works.")
    notes = list(dict.fromkeys(notes))
    table = write_report(outputs.folder, scores, outputs.configuration, notes, published=published)
    save_figure(outputs.folder / "curves.png", curves_figure(curves), outputs.configuration)
    write_page(outputs, finished, notes)
    print(f"\nDice, mean and spread over draws\n\n{table}\n", *notes, sep="\n")
    print(f"\nThe run as one page: {outputs.folder / PAGE}")
    print(f"Results: {outputs.folder / 'table.md'}; beside it scores.csv, figures, and a folder for each method")


if __name__ == "__main__":
    sys.exit(main())
