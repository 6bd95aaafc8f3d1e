"""Train with and without latent-space hard examples on cardiac MR, then test on artefacts and on other scanners.

On a generated phantom, in minutes on two cores; or the paper's protocol on real data, on a GPU:

    python examples/acdc_cooperative.py
    python examples/acdc_cooperative.py --acdc DIR --mnms DIR --preset paper

An interrupted run goes on when it is started again in the same way. Two methods may train side by side in one output
folder, `--methods standard` here and `--methods cooperative` there; without `--methods` the table shows both.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from cardiac.batches import Batch, TrainingBatches, iterations_per_pass, middle_slices, validation_batches
from cardiac.cases import Cases
from cardiac.corruptions import PARAMETERS
from cardiac.data import DataError
from cardiac.metrics import Score, evaluate
from cardiac.moments import FOLDER, Moments
from cardiac.outputs import Outputs
from cardiac.page import PAGE, environment, write_page
from cardiac.phantom import cached_phantom
from cardiac.protocol import PRESETS, Preset
from cardiac.report import AVERAGE, curves_figure, save_figure, write_report
from cardiac.study import Sources, Study
from matplotlib.figure import Figure

from latentaug import (
    FTN,
    CooperativeModel,
    CooperativeTrainer,
    cooperative_backward,
    standard_backward,
    tune_allocator,
)
from latentaug.visualize import draw_hard_examples

METHODS = {"standard": standard_backward, "cooperative": cooperative_backward}
TAKEN = {"ACDC", AVERAGE, *PARAMETERS}
"""Columns of the table that no further test set may be called."""
ROUNDS = 5
"""A run is validated after every pass over its slices, and at least this often."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        run(parse(arguments))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = shlex.join(["python", sys.argv[0], *arguments])
        print(f"\nInterrupted. What is done is kept; to go on: {again}", file=sys.stderr)
        return 130
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        """Refuse an argument."""
        raise DataError(f"{message}. See --help.")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; every field of a preset is a flag."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--acdc", type=Path, metavar="DIR", help="ACDC, as released or preprocessed; without it a phantom is generated")
    add("--mnms", type=Path, metavar="DIR", help="M&Ms as released, a further test set")
    add("--external", action="append", default=[], metavar="NAME=DIR", help="a further test set; repeatable")
    add("--split", type=Path, metavar="FILE", help='JSON with "train", "validation" and "test", lists of ACDC patients')
    add("--preset", choices=PRESETS, default="quick", help="what the flags below say unless given (default: quick)")
    add("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="what to train (default: all)")
    add("--output", type=Path, metavar="DIR", help="results and checkpoints (default: a folder of its own below runs/)")
    add(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to train (default: %(default)s)"
    )
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--seed", type=int, default=0, help="of weights, order, augmentation, noise and masks (default: 0)")
    group = parser.add_argument_group("preset")
    for field in fields(Preset):
        flag, about = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
        else:
            group.add_argument(flag, type=type(field.default or 0), metavar="N", help=about)
    parser.set_defaults(command=shlex.join(["python", sys.argv[0], *arguments]))
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Train what is not trained yet, test it, and write the table of everything in the output folder."""
    overrides = {field.name: getattr(options, field.name) for field in fields(Preset)}
    preset = replace(PRESETS[options.preset], **{name: v for name, v in overrides.items() if v is not None})
    device = prepare(options)
    sources = find(options)
    outputs = Outputs(options.output, describe(options, preset, sources))
    todo = [(m, draw) for draw in range(preset.draws) for m in options.methods if not outputs.is_done(m, draw)]
    if todo:
        study = Study(sources, preset, options.split)
        study.load(sorted({draw for _, draw in todo}))
        outputs.open()
        for method, draw in todo:
            train_and_test(method, draw, study, outputs, device, options.command)
    conclude(outputs)


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


def describe(options: argparse.Namespace, preset: Preset, sources: Sources) -> dict[str, Any]:
    """Return all that the numbers depend on; the number of draws is left out, as more of them can follow."""
    settings = {name: value for name, value in asdict(preset).items() if name != "draws"}
    folders = {"ACDC": sources.acdc, "M&Ms": sources.mnms, **sources.external}
    data = {name: str(folder.resolve()) for name, folder in folders.items() if folder is not None}
    if options.acdc is None:
        data = {name: f"{sources.acdc.parent.name}/{Path(folder).name}" for name, folder in data.items()}
    split = None if options.split is None else str(options.split)
    return {"preset": options.preset, **settings, "seed": options.seed, "data": data, "split": split}


def train_and_test(method: str, draw: int, study: Study, outputs: Outputs, device: torch.device, command: str) -> None:
    """Train one method on one draw, or go on with it, and test what validated best."""
    preset, seed, notes = study.preset, outputs.configuration["seed"] + draw, study.notes(draw)
    frames = study.training(draw)
    per_pass = iterations_per_pass(frames, preset.batch_size)
    iterations = preset.iterations or preset.epochs * per_pass
    print(f"\n{method}, draw {draw}: {iterations} iterations", *notes, sep="\n  ", flush=True)
    trainer = build_trainer(method, preset, seed, outputs.place(method, draw), device)
    loader = TrainingBatches(
        frames,
        side=preset.side,
        batch_size=preset.batch_size,
        length=max(1, min(per_pass, iterations // ROUNDS)),
        seed=seed,
        epoch=lambda: trainer.epoch,
        device=device,
    )
    validation = validation_batches(study.validation(draw), device)
    trainer.callbacks.append(Moments(outputs.place(method, draw) / FOLDER, validation))
    trainer.fit(loader, validation, max_steps=iterations)
    try:
        trainer.load_best()
    except (OSError, ValueError) as error:
        raise DataError(f"{error}. Remove {outputs.place(method, draw)}, to start over.") from None
    seconds, started = sum(row["seconds"] for row in trainer.history), time.monotonic()
    cases = Cases()
    scores = evaluate(trainer.model, study.tests(draw), device, method=method, draw=draw, watch=cases)
    cases.save(outputs.place(method, draw))
    print(f"  {iterations} iterations took {seconds:.0f} s, the tests {time.monotonic() - started:.0f} s.", flush=True)
    about = {
        "iterations": iterations,
        "seconds": round(seconds, 1),
        "best step": trainer.history[trainer.best.epoch - 1]["step"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **environment(command),
        "notes": notes,
    }
    figure = hard_examples_figure(trainer.model, validation)
    save_figure(outputs.place(method, draw) / "hard_examples.png", figure, outputs.configuration)
    outputs.finish(method, draw, scores, about)


def build_trainer(method: str, preset: Preset, seed: int, folder: Path, device: torch.device) -> CooperativeTrainer:
    """Make the paper's network and a trainer for it, alike for every method, where it was left if it was begun."""
    torch.manual_seed(seed)
    network = FTN(num_classes=4, width=preset.width, depth=preset.depth)
    example = torch.zeros(2, 1, preset.side, preset.side)
    model = CooperativeModel(network, num_classes=4, example=example).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate)
    trainer = CooperativeTrainer(model, optimizer, step=METHODS[method], seed=seed, folder=folder)
    if (folder / "last.pt").exists():
        try:
            trainer.resume(folder / "last.pt")
        except ValueError as error:
            raise DataError(f"{error} Or remove {folder}, to start over.") from None
        print(f"  going on from iteration {trainer.global_step}", flush=True)
    return trainer


def hard_examples_figure(model: CooperativeModel, volumes: Sequence[Batch]) -> Figure:
    """Draw how hard examples come about on the middle slices of the first volumes."""
    images, labels = middle_slices(volumes[:4])
    steps = model.explain(images, labels, generator=torch.Generator(images.device).manual_seed(0))
    return draw_hard_examples(images, labels, **steps._asdict())


def conclude(outputs: Outputs) -> None:
    """Write scores, table and curves of every training that is done in the folder, and print the table."""
    scores: list[Score] = []
    notes: list[str] = []
    curves = {}
    finished = [*outputs.finished(METHODS)]
    for method, draw, some, log, about in finished:
        scores += some
        notes += [*about["notes"], f"{method}, draw {draw}: {about['iterations']} iterations in {about['seconds']} s."]
        curves[f"{method}, draw {draw}"] = log
    if outputs.configuration["preset"] == "quick":
        notes.append("The quick preset is too short to rank methods on real data: it shows that everything works.")
    notes = list(dict.fromkeys(notes))
    table = write_report(outputs.folder, scores, outputs.configuration, notes)
    save_figure(outputs.folder / "curves.png", curves_figure(curves), outputs.configuration)
    write_page(outputs, finished, notes)
    print(f"\nDice, mean and spread over draws\n\n{table}\n", *notes, sep="\n")
    print(f"\nThe run as one page: {outputs.folder / PAGE}")
    print(f"Results: {outputs.folder / 'table.md'}; beside it scores.csv, figures, and a folder for each method")


if __name__ == "__main__":
    sys.exit(main())
